"""Windows of calibration tokens: from a text, and drawn from the model itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spqt_ti.errors import GenerationError
from spqt_ti.generation.sampling import Sampling, draw
from spqt_ti.model.runner import Llama

__all__ = ["sampled_windows", "text_windows"]


def text_windows(tokens: Sequence[int], length: int, most: int, bos: int | None) -> list[list[int]]:
    """Up to `most` windows of `length` tokens in order, each begun with `bos` where there is one; the rest is left."""
    begun = [] if bos is None else [bos]
    step = length - len(begun)
    starts = range(0, len(tokens) - step + 1, step)[:most]
    return [[*begun, *tokens[start : start + step]] for start in starts]


def sampled_windows(llama: Llama, length: int, count: int, bos: int | None, seed: int) -> list[list[int]]:
    """`count` windows of `length` tokens drawn from the model at temperature 1, ends of text included: a text of the
    kind that the model itself finds likely.

    A window begins with `bos`, or with a token drawn evenly from the vocabulary. The same seed draws the same windows
    with the same number of threads. Raises GenerationError where a window does not fit the context.
    """
    if length > llama.context:
        raise GenerationError(f"windows of {length} tokens do not fit the context of {llama.context}")
    sampling, generator = Sampling(temperature=1.0, seed=seed), np.random.default_rng(seed)
    windows = []
    for _ in range(count):
        llama.reset()
        window = [int(generator.integers(llama.config.vocab_size)) if bos is None else bos]
        while len(window) < length:
            window.append(draw(llama.decode(window[-1]), sampling, generator))
        windows.append(window)
    return windows
