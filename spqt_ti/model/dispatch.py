"""How each matrix decodes (divided in which way, sparsely or not), and why: from what `spqt tune` has measured, or by
default.
"""

from __future__ import annotations

from dataclasses import dataclass

from spqt_ti.errors import TuningError
from spqt_ti.kernels.shared.geometry import ZigzagShape
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.engine import EngineKind
from spqt_ti.model.sites import matrix_shapes
from spqt_ti.model.tuning import DEFAULT_MAX_DENSITY, Tuning


@dataclass(frozen=True)
class Choice:
    """How the matrix of a site runs: sparse up to `max_density` of active inputs, beyond it dense."""

    site: str
    rows: int
    cols: int
    division: str | None  # the engine's own (see EngineKind)
    max_density: float
    tuned: bool

    def runs_sparse(self, sparsity: float) -> bool:
        """True if the sparse kernel is used at this level."""
        return sparsity > 0 and 1 - sparsity <= self.max_density

    def reason(self, sparsity: float) -> str:
        """Why, in a few words."""
        source = "measured by spqt tune" if self.tuned else "default, not tuned"
        if sparsity == 0:
            return "nothing is to be skipped"
        return f"{1 - sparsity:.0%} of the inputs active; skipping pays up to {self.max_density:.0%} ({source})"


def choose(config: ModelConfig, tuning: Tuning, threads: int | None, kind: EngineKind) -> dict[str, Choice]:
    """Site -> choice, for a model on the tuning's device; `threads`: of a CPU, None on a GPU; `kind`: of engine there.

    Raises TuningError for a division that was measured and is none of the engine's.
    """
    return {site: _choice(config, site, shape, tuning, threads, kind) for site, shape in matrix_shapes(config).items()}


def _choice(
    config: ModelConfig, site: str, shape: ZigzagShape, tuning: Tuning, threads: int | None, kind: EngineKind
) -> Choice:
    found = tuning.find(shape.rows, shape.cols, threads)
    try:
        division = kind.divide(config, site, found.division if found else None)
    except ValueError as error:
        raise TuningError(
            f"the tuning of {tuning.device} does not fit this version ({error}); run spqt tune again, or spqt tune "
            "--reset"
        ) from error
    if found is not None and division != found.division:
        found = None
    max_density = found.max_density if found else DEFAULT_MAX_DENSITY
    return Choice(site, shape.rows, shape.cols, division, max_density, found is not None)
