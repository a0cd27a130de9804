"""Where predictors of neurons, and what is computed with them, lie on a GPU: arrays of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spqt_ti.backend import check_memory, require, ti
from spqt_ti.formats import q8_0
from spqt_ti.kernels.shared.geometry import TILE_ROWS, tiles_for
from spqt_ti.kernels.simt.head import tile
from spqt_ti.kernels.simt.row_words import RowWords
from spqt_ti.kernels.simt.transfer import upload, zeros
from spqt_ti.model.engine import CHUNK
from spqt_ti.model.predictors import NeuronPredictor, factor_blocks

FACTORS = ("fc1_quants", "fc1_headers", "fc2_words", "fc2_scales", "guesses")  # arrays that predict
MOST_ARRAYS, MAX_GROUP, SHARED_BYTES = 6, 256, 8 << 10  # that a kernel takes


@dataclass(frozen=True)
class NeuronMap:
    """What kernels are compiled with of `count` predictors of one rank, completed with zeros to a multiple of 32.

    fc1 is a matrix of Q8_0 rows, fc2 Q8_0 tiles of 64 rows; a predictor's follow those of the one before.
    """

    rank: int
    hidden: int
    intermediate: int
    segments: int  # of the list of neurons
    count: int

    @property
    def fc1(self) -> RowWords:
        """[rank, hidden]."""
        return RowWords(self.rank, self.hidden, q8_0.SCHEME)

    @property
    def tiles(self) -> int:
        """Of fc2 [intermediate, rank]."""
        return tiles_for(self.intermediate)

    @property
    def padded(self) -> int:
        """Neurons in whole tiles."""
        return self.tiles * TILE_ROWS

    # First values of the parts of the f32 array `guesses`, which begins with the biases [count][padded].
    @property
    def code(self) -> int:
        """fc1 x [rank]."""
        return self.count * self.padded

    @property
    def guess(self) -> int:
        """[padded], max(fc2 (fc1 x) + bias, 0)."""
        return self.code + self.rank

    @property
    def read(self) -> int:
        """[padded], 1 for neurons whose up row was read."""
        return self.guess + self.padded

    @property
    def chunk_codes(self) -> int:
        """[CHUNK][rank], fc1 x of a prompt's tokens."""
        return self.read + self.padded

    @property
    def nbytes(self) -> int:
        """Bytes of a predictor that a token reads: factors and biases, padding included."""
        return 16 * (self.fc1.quants + self.fc1.headers) + 68 * self.tiles * self.rank + 4 * self.intermediate

    def sizes(self) -> dict[str, int]:
        """Bytes of the arrays."""
        factors = 16 * (self.fc1.quants + self.fc1.headers) + 68 * self.tiles * self.rank
        return {"predictors": self.count * factors, "predictions": 4 * (self.chunk_codes + CHUNK * self.rank)}


class NeuronArrays:
    """Predictors on the device. Raises BackendError where they, or the kernels that run them, do not fit it."""

    def __init__(self, neurons: NeuronMap, predictors: Sequence[NeuronPredictor], layers: int) -> None:
        require(MAX_GROUP, SHARED_BYTES, MOST_ARRAYS)
        check_memory("neuron predictors", neurons.sizes())
        self.map = neurons
        quants: list[np.ndarray] = []
        headers: list[np.ndarray] = []
        words: list[np.ndarray] = []
        scales: list[np.ndarray] = []
        biases = np.zeros((neurons.count, neurons.padded), np.float32)
        for number, predictor in enumerate(predictors):
            fc1, fc2 = factor_blocks(predictor, neurons.rank)
            for parts, values in zip((quants, headers), neurons.fc1.unpack(fc1.reshape(-1)), strict=True):
                parts.append(values)
            for parts, values in zip((words, scales), tile(fc2), strict=True):
                parts.append(values)
            biases[number, : neurons.intermediate] = predictor.bias
        guesses = np.zeros(neurons.chunk_codes + CHUNK * neurons.rank, np.float32)
        guesses[: biases.size] = biases.reshape(-1)
        self.arrays: dict[str, ti.Ndarray] = {
            "fc1_quants": upload(np.concatenate(quants)),
            "fc1_headers": upload(np.concatenate(headers)),
            "fc2_words": upload(np.concatenate(words)),
            "fc2_scales": upload(np.concatenate(scales)),
            "guesses": upload(guesses),
            # [layers][2][segments]: gate rows and up rows that were read since this was cleared.
            "rows_read": zeros(ti.i32, layers * 2 * neurons.segments),
        }
