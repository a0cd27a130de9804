"""How each matrix decodes (divided in which way, sparsely or not), and why: from what `spqt tune` has measured, or by
default.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from spqt_ti.kernels.shared.geometry import ZigzagShape
from spqt_ti.kernels.simt.splits import Split, default_split
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.simt.weights import segments_of
from spqt_ti.model.sites import matrix_shapes
from spqt_ti.model.tuning import DEFAULT_MAX_DENSITY, TunedShape, Tuning

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """How the matrix of a site runs: sparse up to `max_density` of active inputs, beyond it dense."""

    site: str
    rows: int
    cols: int
    panel_bands: int | None  # of a CPU; None: the kernels' own preference
    split: Split | None  # of a GPU
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


def choose(config: ModelConfig, tuning: Tuning, threads: int | None) -> dict[str, Choice]:
    """Site -> choice, for a model on the tuning's device; `threads`: of a CPU, None on a GPU."""
    return {site: _choice(config, site, shape, tuning, threads) for site, shape in matrix_shapes(config).items()}


def _choice(config: ModelConfig, site: str, shape: ZigzagShape, tuning: Tuning, threads: int | None) -> Choice:
    found = tuning.find(shape.rows, shape.cols, threads)
    if found is not None and not _fits(config, site, found):
        found = None
    panel_bands, split = (found.panel_bands, found.split) if found else (None, None)
    if threads is None:
        split = split or default_split(shape.bands, shape.cols)
    max_density = found.max_density if found else DEFAULT_MAX_DENSITY
    return Choice(site, shape.rows, shape.cols, panel_bands, split, max_density, found is not None)


def _fits(config: ModelConfig, site: str, found: TunedShape) -> bool:
    """Whether the tuned kernel can read the list of this site, which may have more segments than the one measured."""
    segments = segments_of(config, site).padded
    if found.split is None or segments <= found.split.most_segments:
        return True
    _log.warning(
        "%s: the tuned split %s cannot add up a list of %d segments, so the default is taken",
        site, found.split, segments,
    )  # fmt: skip
    return False
