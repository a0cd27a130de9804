"""Which matrices decode sparsely, and why: from what `spqt tune` has measured, or by default."""

from __future__ import annotations

from dataclasses import dataclass

from spqt_ti.kernels.geometry import ZigzagShape
from spqt_ti.tuning import DEFAULT_MAX_DENSITY, Tuning


@dataclass(frozen=True)
class Choice:
    """How the matrix of a site runs: sparse up to `max_density` of active inputs, beyond it dense."""

    site: str
    rows: int
    cols: int
    panel_bands: int | None  # None: the kernels' own preference
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
        relation = "up to" if self.runs_sparse(sparsity) else "above"
        return f"density {1 - sparsity:.0%} is {relation} the {self.max_density:.0%} at which skipping pays ({source})"


def choose(shapes: dict[str, ZigzagShape], tuning: Tuning, threads: int) -> dict[str, Choice]:
    """Site -> choice, for the matrices of a model."""
    choices = {}
    for site, shape in shapes.items():
        found = tuning.find(shape.rows, shape.cols, threads)
        choices[site] = Choice(
            site,
            shape.rows,
            shape.cols,
            found.panel_bands if found else None,
            found.max_density if found else DEFAULT_MAX_DENSITY,
            found is not None,
        )
    return choices
