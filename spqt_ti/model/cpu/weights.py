"""A model's weights on the device, as the decode and prefill kernels read them.

The four matrices of every block share three arrays (quants, tail bands, superblock headers) with the same stride per
layer; a kernel finds a matrix in a table of integers (`site_table`). Norms, biases and the RoPE table are one more
array, `constants`; behind them lie the gates, which alone change between launches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np

from spqt_ti.backend import host_view, ndarray, ti
from spqt_ti.container import Container
from spqt_ti.errors import BackendError
from spqt_ti.kernels.cpu.block_sums import GROUP_BANDS
from spqt_ti.kernels.cpu.gemv import preferred_panel_bands
from spqt_ti.kernels.cpu.heads import HeadConstants
from spqt_ti.kernels.cpu.schemes import q4_k
from spqt_ti.kernels.cpu.vectors import f16x16, f32x16, u32x4, u32x8, u32x16
from spqt_ti.kernels.cpu.zigzag import split
from spqt_ti.kernels.shared.geometry import TILE_COLUMN_BYTES, ZigzagShape, tiles_for
from spqt_ti.kernels.shared.vocabulary import tile
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.constants import Constants
from spqt_ti.model.gates import GatePlan
from spqt_ti.model.sites import SITES, Site, Traffic, inputs_per_site, matrix_shapes

_MAX_WORDS = 2**31 - 1  # Taichi indexes an ndarray's words with i32


class SiteField(IntEnum):
    """Columns of Weights.site_table; BIAS: first vector among a layer's constants, -1 for none."""

    COLS = 0
    FULL_BANDS = 1
    TAIL_BANDS = 2
    PANEL_BANDS = 3
    BANDS = 4
    QUANTS = 5
    TAIL = 6
    HEADERS = 7
    BIAS = 8


@dataclass(frozen=True)
class MatrixPlace:
    """Shape of a matrix and its first vector, within a layer, in each of the three weight arrays."""

    shape: ZigzagShape
    quants: int
    tail: int
    headers: int


class Weights:
    """Device arrays of a zigzag container, for a context of `context` positions (a multiple of 16).

    `panel_bands`: per site the number of bands side by side (see ZigzagShape); None or no entry: what kernels prefer.

    Raises BackendError when an array would have more words than Taichi can index.
    """

    def __init__(self, container: Container, context: int, panel_bands: Mapping[str, int | None]) -> None:
        config = container.config
        self.config, self.context = config, context
        self.places: dict[str, MatrixPlace] = {}
        quants = tail = headers = 0
        for label, stored in matrix_shapes(config).items():
            shape = replace(stored, panel_bands=panel_bands.get(label) or preferred_panel_bands())
            self.places[label] = MatrixPlace(shape, quants, tail, headers)
            quants += shape.quant_vectors
            tail += shape.tail_vectors
            headers += shape.headers
        self.quants_stride, self.tail_stride, self.headers_stride = quants, tail, headers
        layers = config.num_hidden_layers
        self.quants = _allocate(u32x16, layers * quants, "quants")
        self.tail = _allocate(u32x8, layers * tail, "tail quants")
        self.headers = _allocate(u32x4, layers * headers + GROUP_BANDS - 1, "superblock headers")
        for layer in range(layers):
            for site in Site:
                self._load_matrix(layer, site.label, container.read_matrix(container.matrix(layer, site)))
        self._load_vocabulary(container)
        self._load_constants(container)

    def _load_matrix(self, layer: int, site: str, data: np.ndarray) -> None:
        place = self.places[site]
        quants, tail, headers = split(data, place.shape, q4_k.DECODER)
        for array, rows, start in (
            (self.quants, quants, layer * self.quants_stride + place.quants),
            (self.tail, tail, layer * self.tail_stride + place.tail),
            (self.headers, headers, layer * self.headers_stride + place.headers),
        ):
            host_view(array)[start : start + len(rows)] = rows

    def _load_vocabulary(self, container: Container) -> None:
        """Embedding tiles first, then the head's unless they are the same."""
        config = container.config
        matrices = list(dict.fromkeys([container.embedding.tensor, container.head.tensor]))
        self.vocabulary_tiles = tiles_for(config.vocab_size)
        self.head_tile = (len(matrices) - 1) * self.vocabulary_tiles
        tiles = len(matrices) * self.vocabulary_tiles
        self.words = _allocate(u32x16, tiles * config.hidden_size, "vocabulary")
        self.scales = _allocate(f16x16, tiles * config.hidden_size // 32 * 4, "vocabulary scales")
        for i, name in enumerate(matrices):
            words, scales = tile(container.read(name))
            host_view(self.words)[i * len(words) : (i + 1) * len(words)] = words
            host_view(self.scales)[i * len(scales) : (i + 1) * len(scales)] = scales

    def _load_constants(self, container: Container) -> None:
        config, constants = container.config, Constants.read(container, self.context)
        self.layer_constants = {name: first // 16 for name, first in constants.layer.items()}
        self.constants_stride = constants.stride // 16
        self.final_norm = constants.final_norm // 16
        self.head_constants = HeadConstants(
            constants.rope // 16,
            self.constants_stride,
            config.rms_norm_eps,
            *map(self.layer_constants.get, ("q_norm", "k_norm", "window")),
        )
        self.gates = constants.values.size // 16
        self.gate_plan = GatePlan.plan(config.num_hidden_layers, int(inputs_per_site(config).max()))
        self.constants = _allocate(f32x16, self.gates + self.gate_plan.vectors, "norms, RoPE table and gates")
        host_view(self.constants)[: self.gates] = constants.values.reshape(-1, 16)

    def site_table(self) -> np.ndarray:
        """i32 [layers, 4, 9]: what a kernel needs to know of each matrix, by the columns of SiteField."""
        return np.array(
            [[self._site_row(layer, site) for site in SITES] for layer in range(self.config.num_hidden_layers)],
            np.int32,
        )

    def _site_row(self, layer: int, site: str) -> list[int]:
        place = self.places[site]
        shape = place.shape
        return [
            shape.cols, shape.full_bands, shape.tail_bands, shape.panel_bands, shape.bands,
            layer * self.quants_stride + place.quants, layer * self.tail_stride + place.tail,
            layer * self.headers_stride + place.headers, self.layer_constants.get(f"{site}_bias", -1),
        ]  # fmt: skip


def traffic(config: ModelConfig) -> Traffic:
    """What a token reads of these arrays: a column of a last band of more than 64 rows is a full band's."""
    columns = [shape.bytes_per_column for shape in matrix_shapes(config).values()]
    head = int(tiles_for(config.vocab_size) * config.hidden_size * TILE_COLUMN_BYTES)
    return Traffic(np.tile(columns, (config.num_hidden_layers, 1)), head)


def _allocate(dtype: Any, vectors: int, what: str) -> ti.Ndarray:
    if vectors * dtype.n > _MAX_WORDS:
        raise BackendError(
            f"{what}: {vectors * dtype.n} words are more than Taichi can index in one array ({_MAX_WORDS})"
        )
    array = ndarray(dtype, (max(1, vectors),))
    host_view(array)[:] = 0
    return array
