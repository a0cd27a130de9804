"""Windows spread evenly over a text, for what is too slow to do on all of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spqt_ti.container import Container
from spqt_ti.model.reference import embedded


def spread(tokens: Sequence[int], windows: int, length: int, offset: float = 0.0) -> list[Sequence[int]]:
    """Up to `windows` different windows of `length` tokens (of all, if there are fewer), evenly over `tokens`.

    `offset`, 0 to 1, moves them by that part of their distance, so that samples for different ends differ.
    """
    length = min(length, len(tokens))
    starts = np.linspace(0, len(tokens) - length, windows + 1)[:-1] if windows > 1 else np.zeros(1)
    starts = starts + offset * (len(tokens) - length) / windows
    return [tokens[start : start + length] for start in np.unique(starts.astype(int))]


def embeddings(container: Container, windows: Sequence[Sequence[int]]) -> np.ndarray:
    """What the first layer gets, f32 [windows, length, hidden]."""
    return embedded(container.config, container.dequantize("model.embed_tokens")[np.asarray(windows)])
