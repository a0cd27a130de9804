"""Neuron predictors: per layer a low-rank guess, from the input of a feed-forward network, which of its neurons are on.

After arXiv 2603.14110: two small matrices with nothing between them, and a bias. Facts alone; calibration makes them
(sparsity/predictors), the engines run them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from spqt_ti.formats import q8_0


class Executor(Enum):
    """How a feed-forward network runs with a predictor.

    SEQUENTIAL: gate rows of the predicted neurons, then up rows of those whose activation is not zero. PARALLEL: gate
    and up rows of the predicted neurons at once.
    """

    SEQUENTIAL = "sequential"
    PARALLEL = "parallel"


@dataclass(frozen=True)
class NeuronPredictor:
    """Predictor of one layer: a neuron counts as on where fc2 (fc1 x) + bias > 0.

    `fc1`: f32 [rank, hidden]; `fc2`: f32 [intermediate, rank]; `bias`: f32 [intermediate]. Raises ValueError for other
    shapes or types, for a rank above hidden, and for numbers that are not finite.
    """

    fc1: np.ndarray
    fc2: np.ndarray
    bias: np.ndarray

    def __post_init__(self) -> None:
        for name, dimensions in (("fc1", 2), ("fc2", 2), ("bias", 1)):
            values = getattr(self, name)
            if values.dtype != np.float32 or values.ndim != dimensions:
                raise ValueError(f"{name} is {values.dtype} {list(values.shape)}, expected f32 of {dimensions} axes")
            if not np.isfinite(values).all():
                raise ValueError(f"{name} has numbers that are not finite")
        if not 1 <= self.rank <= self.hidden:
            raise ValueError(f"rank {self.rank}, expected 1 to hidden = {self.hidden}")
        if self.fc2.shape[1] != self.rank or self.bias.shape != (self.intermediate,):
            raise ValueError(
                f"fc1 {list(self.fc1.shape)}, fc2 {list(self.fc2.shape)} and bias {list(self.bias.shape)} do not fit; "
                "expected [rank, hidden], [intermediate, rank] and [intermediate]"
            )

    @property
    def rank(self) -> int:
        """Numbers between the two matrices."""
        return int(self.fc1.shape[0])

    @property
    def hidden(self) -> int:
        """Inputs of the feed-forward network."""
        return int(self.fc1.shape[1])

    @property
    def intermediate(self) -> int:
        """Neurons of the feed-forward network."""
        return int(self.fc2.shape[0])

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Which neurons count as on for inputs x [..., hidden]: bool [..., intermediate], computed as x's type."""
        guess: np.ndarray = (x @ self.fc1.T) @ self.fc2.T + self.bias > 0
        return guess


def padded_rank(ranks: list[int]) -> int:
    """The rank that predictors of these are completed to."""
    return -(-max(ranks) // q8_0.VALUES) * q8_0.VALUES


def factor_blocks(predictor: NeuronPredictor, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """fc1 and fc2 as every engine computes with them, completed to `rank`: Q8_0 blocks of their rows (`blocks_of`)."""
    short = rank - predictor.rank
    return blocks_of(np.pad(predictor.fc1, ((0, short), (0, 0)))), blocks_of(
        np.pad(predictor.fc2, ((0, 0), (0, short)))
    )


def blocks_of(factor: np.ndarray) -> np.ndarray:
    """Q8_0 blocks u8 [rows, cols / 32, 34] of f32 [rows, cols]."""
    values = np.ascontiguousarray(factor, np.float32)
    return q8_0.quantize(values.reshape(-1, q8_0.VALUES)).reshape(len(values), -1, q8_0.BYTES)
