"""A dense model in f32 NumPy on weights of any origin: what the runner cannot hold (F16, Q8_0, row layout) is evaluated
with this. For models whose f32 weights fit into memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spqt_ti.model.reference import Reference


class FloatModel(Reference):
    """A Reference that `compare` can score."""

    def second_half(self, window: Sequence[int]) -> np.ndarray:
        """What `compare` scores (a Scorer)."""
        return self.logits(window, len(window) // 2)[:-1]
