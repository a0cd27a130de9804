"""Where predictors of neurons lie in the CPU's memory: their factors behind the tiles of the vocabulary, their biases
behind the other constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spqt_ti.kernels.shared.geometry import tiles_for
from spqt_ti.kernels.shared.vocabulary import tile
from spqt_ti.model.predictors import NeuronPredictor, factor_blocks


@dataclass(frozen=True)
class NeuronMap:
    """What kernels are compiled with of predictors of one rank, completed with zeros to a multiple of 32.

    `words` and `scales`: first vectors of the first predictor in the arrays of the vocabulary; the others follow.
    """

    rank: int
    hidden: int
    intermediate: int
    words: int
    scales: int

    @property
    def code_tiles(self) -> int:
        """Tiles of fc1, whose outputs are the code of x."""
        return tiles_for(self.rank)

    @property
    def neuron_tiles(self) -> int:
        """Tiles of fc2."""
        return tiles_for(self.intermediate)

    @property
    def fc2_words(self) -> int:
        """First vector of fc2 among a predictor's words."""
        return self.code_tiles * self.hidden

    @property
    def fc2_scales(self) -> int:
        """First vector of fc2 among a predictor's scales."""
        return self.code_tiles * self.hidden // 8

    @property
    def words_stride(self) -> int:
        """Vectors of words of a predictor."""
        return self.fc2_words + self.neuron_tiles * self.rank

    @property
    def scales_stride(self) -> int:
        """Vectors of scales of a predictor."""
        return self.fc2_scales + self.neuron_tiles * self.rank // 8

    @property
    def nbytes(self) -> int:
        """Bytes of a predictor that a token reads: words, scales and biases, padding included."""
        return 64 * self.words_stride + 32 * self.scales_stride + 4 * self.intermediate


def factor_tiles(predictor: NeuronPredictor, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Words u32 [words_stride, 16] and scales f16 [scales_stride, 16] of a predictor, completed to `rank`."""
    parts = [tile(blocks) for blocks in factor_blocks(predictor, rank)]
    return np.concatenate([words for words, _ in parts]), np.concatenate([scales for _, scales in parts])
