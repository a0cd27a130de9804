"""A model's weights as GPU kernels read them: stored bytes in arrays of words, and where each matrix lies in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spqt_ti.container import Container
from spqt_ti.kernels.shared.geometry import TILE_COLUMN_BYTES, tiles_for
from spqt_ti.kernels.simt.active_list import Segments, spread, whole
from spqt_ti.kernels.simt.head import tile
from spqt_ti.kernels.simt.splits import Split, default_split
from spqt_ti.kernels.simt.zigzag import ZigzagWords
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.sites import Site, Traffic, matrix_shapes


@dataclass(frozen=True)
class MatrixPlace:
    """A site's matrix: its shape, how its GEMV is split and its inputs are collected, and its first entries within a
    layer.
    """

    shape: ZigzagWords
    split: Split
    segments: Segments
    quants: int
    headers: int


@dataclass(frozen=True)
class WeightLayout:
    """Where everything lies in the four arrays: quants and headers (of four words each), vocabulary and its scales
    (words).

    The matrices of a layer follow one another; embedding tiles come before the head's unless they are the same.
    """

    config: ModelConfig
    places: dict[str, MatrixPlace]
    quants_stride: int
    headers_stride: int
    tiles: int
    head_tile: int

    @classmethod
    def plan(cls, config: ModelConfig, splits: Mapping[str, Split] | None = None) -> WeightLayout:
        """The layout of a model of these sizes. `splits`: of each site's GEMV, by default `default_split`."""
        places, quants, headers = {}, 0, 0
        for site, stored in matrix_shapes(config).items():
            shape = ZigzagWords(stored.rows, stored.cols)
            split = splits[site] if splits else default_split(shape.bands, shape.cols)
            places[site] = MatrixPlace(shape, split, segments_of(config, site), quants, headers)
            quants, headers = quants + shape.quants, headers + shape.headers
        tiles = tiles_for(config.vocab_size)
        return cls(config, places, quants, headers, tiles, 0 if config.tie_word_embeddings else tiles)

    def sizes(self) -> dict[str, int]:
        """Words of each array."""
        layers, tiles = self.config.num_hidden_layers, self.tiles + self.head_tile
        return {
            "quants": 4 * layers * self.quants_stride,
            "headers": 4 * layers * self.headers_stride,
            "vocabulary": tiles * self.config.hidden_size * 16,
            "vocabulary scales": tiles * self.config.hidden_size,
        }


def traffic(config: ModelConfig) -> Traffic:
    """What a token reads of these arrays: of a last band only the pairs of sub-blocks that it has."""
    shapes = [ZigzagWords(shape.rows, shape.cols) for shape in matrix_shapes(config).values()]
    columns = [16 * (shape.quants + shape.headers) // shape.cols for shape in shapes]
    head = int(tiles_for(config.vocab_size) * config.hidden_size * TILE_COLUMN_BYTES)
    return Traffic(np.tile(columns, (config.num_hidden_layers, 1)), head)


def segments_of(config: ModelConfig, site: str) -> Segments:
    """Segments of a site's active list: what a group computes of the site's inputs, it collects."""
    cols = matrix_shapes(config)[site].cols
    return {"o": Segments(cols, config.head_dim), "down": spread(cols)}.get(site, whole(cols))


def read_words(container: Container, layout: WeightLayout) -> dict[str, np.ndarray]:
    """The arrays of a layout (name -> u32 [entries, 4] or [size]), filled from a zigzag container."""
    arrays: dict[str, np.ndarray] = {name: np.zeros(size, np.uint32) for name, size in layout.sizes().items()}
    arrays |= {name: arrays[name].reshape(-1, 4) for name in ("quants", "headers")}
    for layer in range(layout.config.num_hidden_layers):
        for site in Site:
            place = layout.places[site.label]
            quants, headers = place.shape.split(container.read_matrix(container.matrix(layer, site)))
            _put(arrays["quants"], layer * layout.quants_stride + place.quants, quants)
            _put(arrays["headers"], layer * layout.headers_stride + place.headers, headers)
    for i, name in enumerate(dict.fromkeys([container.embedding.tensor, container.head.tensor])):
        words, scales = tile(container.read(name))
        _put(arrays["vocabulary"], i * words.size, words)
        _put(arrays["vocabulary scales"], i * scales.size, scales)
    return arrays


def _put(array: np.ndarray, start: int, values: np.ndarray) -> None:
    array[start : start + len(values)] = values
