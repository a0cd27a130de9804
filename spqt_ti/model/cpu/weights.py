"""A model's weights on the device, as the decode and prefill kernels read them.

The matrices of all layers, and a head that is not made of tiles, share three arrays (quants, tail bands, superblock
headers), whatever their schemes and layouts; a kernel finds a matrix in a table of integers (`site_table`). Norms,
biases and the RoPE table are one more array, `constants`; behind them lie the selectors, which alone change between
launches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from spqt_ti.backend import host_view, ndarray, ti
from spqt_ti.container import Container
from spqt_ti.errors import BackendError, ContainerError
from spqt_ti.kernels.cpu.heads import HeadConstants
from spqt_ti.kernels.cpu.row_layout import unpack as unpack_rows
from spqt_ti.kernels.cpu.tile_sums import QUAD_BANDS
from spqt_ti.kernels.cpu.vectors import f16x16, f32x16, u32x4, u32x8, u32x16
from spqt_ti.kernels.cpu.zigzag import unpack
from spqt_ti.kernels.shared.geometry import tiles_for
from spqt_ti.kernels.shared.vocabulary import tile
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.constants import Constants
from spqt_ti.model.cpu.matrix_maps import MatrixMap, MatrixMaps, in_tiles
from spqt_ti.model.selectors import SelectorMap
from spqt_ti.model.sites import SITES, Site, inputs_per_site

_MAX_VECTORS = 2**31 - 1  # kernels index vectors with i32; bytes and lanes behind them are counted in i64


class SiteField(IntEnum):
    """Columns of WeightMap.site_table. BIAS: first vector among a layer's constants, -1 for none. KIND: index in
    MatrixMaps.kinds.
    """

    COLS = 0
    FULL_BANDS = 1
    TAIL_BANDS = 2
    PANEL_BANDS = 3
    BANDS = 4
    QUANTS = 5
    TAIL = 6
    HEADERS = 7
    BIAS = 8
    KIND = 9
    ROWS = 10


@dataclass(frozen=True)
class WeightMap:
    """Sizes and offsets of a model's weights: all that kernels are compiled with of them. Models with equal maps share
    their kernels.

    `layer_constants`: (name, first vector among a layer's constants), `selectors`: first vector behind the constants;
    `head_tile`: the head's first tile, where it is made of tiles.
    """

    config: ModelConfig
    context: int
    matrices: MatrixMaps
    vocabulary_tiles: int
    logit_vectors: int
    head_tile: int
    layer_constants: tuple[tuple[str, int], ...]
    constants_stride: int
    final_norm: int
    head_constants: HeadConstants
    selectors: int
    selector_map: SelectorMap
    factors: int  # of what turns the input of down, as Constants has them

    @property
    def neuron_biases(self) -> int:
        """First vector, behind the selectors, of the biases of neuron predictors [layers][intermediate / 16]."""
        return self.selectors + self.selector_map.vectors

    @property
    def constants_vectors(self) -> int:
        """Vectors of the constants with all that is behind them."""
        layers, width = self.config.num_hidden_layers, self.config.intermediate_size // 16
        return self.neuron_biases + (layers * width if self.matrices.has_gate_up_rows else 0)

    def layer_constant(self, name: str) -> int | None:
        """First vector of a constant within those of its layer; None where the model has none of this name."""
        return dict(self.layer_constants).get(name)

    @classmethod
    def of(
        cls, container: Container, constants: Constants, context: int, panel_bands: Mapping[str, int | None]
    ) -> "WeightMap":
        """For a container, its constants and `context` positions. `panel_bands`: see `Weights`."""
        config = container.config
        matrices, tiles = MatrixMaps.of(config, container.matrices, panel_bands), tiles_for(config.vocab_size)
        own_tiles = matrices.head is None and container.head.tensor != container.embedding.tensor
        layer = {name: first // 16 for name, first in constants.layer.items()}
        in_layer = map(layer.get, ("q_norm", "k_norm", "window", "rope"))
        stride = constants.stride // 16
        return cls(
            config, context, matrices, tiles,
            logit_vectors=tiles * 4 if matrices.head is None else matrices.head.shape.padded_rows // 16,
            head_tile=tiles if own_tiles else 0,
            layer_constants=tuple(layer.items()),
            constants_stride=stride,
            final_norm=constants.final_norm // 16,
            head_constants=HeadConstants(
                constants.rope // 16, stride, config.rms_norm_eps, config.rotary_dim, context * config.head_dim // 16,
                config.architecture.qk_norm_whole, *in_layer,
            ),
            selectors=constants.values.size // 16,
            selector_map=SelectorMap.of(config.num_hidden_layers, int(inputs_per_site(config).max())),
            factors=constants.factors // 16,
        )  # fmt: skip

    def site_table(self) -> np.ndarray:
        """i32 [layers, 4, 11]: what a kernel needs to know of each matrix, by the columns of SiteField."""
        rows = [
            [self._site_row(site, matrix_map) for site, matrix_map in zip(SITES, layer, strict=True)]
            for layer in self.matrices.sites
        ]
        return np.array(rows, np.int32)

    def _site_row(self, site: str, matrix_map: MatrixMap) -> list[int]:
        bias = self.layer_constant(f"{site}_bias")
        shape, kind = matrix_map.shape, self.matrices.kinds.index(matrix_map.kind)
        return [
            shape.cols, shape.full_bands, shape.tail_bands, shape.panel_bands, shape.bands, matrix_map.quants,
            matrix_map.tail, matrix_map.headers, -1 if bias is None else bias, kind, shape.rows,
        ]  # fmt: skip


class Weights:
    """Device arrays of a container, for a context of `context` positions (a multiple of 16), and their map.

    `panel_bands`: per site the number of bands side by side (see ZigzagShape); None or no entry: what kernels prefer.

    Raises BackendError when an array would have more words than Taichi can index, ContainerError for an embedding that
    is not Q8_0 in rows.
    """

    words: ti.Ndarray
    scales: ti.Ndarray

    def __init__(self, container: Container, context: int, panel_bands: Mapping[str, int | None]) -> None:
        if not in_tiles(container.embedding):
            raise ContainerError(
                f"{container.path}: the embedding is stored as {container.embedding.storage}; only q8_0, row can be "
                "decoded: quantise without embedding=..."
            )
        constants = Constants.read(container, context)
        self.map = WeightMap.of(container, constants, context, panel_bands)
        matrices = self.map.matrices
        quants, tail, headers = matrices.sizes
        self.quants = _allocate(u32x16, quants, "quants")
        self.tail = _allocate(u32x8, tail, "tail quants")
        self.headers = _allocate(u32x4, headers + QUAD_BANDS - 1, "superblock headers")
        for layer in range(container.config.num_hidden_layers):
            for site in Site:
                self._load_matrix(matrices.sites[layer][site], container.read_matrix(container.matrix(layer, site)))
        if matrices.head is not None:
            self._load_matrix(matrices.head, container.read_matrix(container.head))
        self._load_vocabulary(container)
        self.constants = _allocate(f32x16, self.map.constants_vectors, "norms, RoPE table and selectors")
        host_view(self.constants)[: self.map.selectors] = constants.values.reshape(-1, 16)

    def _load_matrix(self, matrix_map: MatrixMap, data: np.ndarray) -> None:
        shape, decoder = matrix_map.shape, matrix_map.kind.decoder
        tail = np.zeros((0, 8), np.uint32)
        if matrix_map.kind.rows:
            quants, headers = unpack_rows(data, shape.rows, shape.cols, decoder)
        else:
            quants, tail, headers = unpack(data, shape, decoder)
        parts = (
            (self.quants, quants, matrix_map.quants),
            (self.tail, tail, matrix_map.tail),
            (self.headers, headers, matrix_map.headers),
        )
        for array, vectors, start in parts:
            host_view(array)[start : start + len(vectors)] = vectors

    def put_behind_vocabulary(self, words: np.ndarray, scales: np.ndarray) -> None:
        """Words u32 [n, 16] and scales f16 [n, 16] follow the tiles of the vocabulary from now on, in place of those
        that did before. BackendError as for the weights.
        """
        ends = self.vocabulary_ends
        views = host_view(self.words)[: ends[0]], host_view(self.scales)[: ends[1]]
        self.words = _allocate(u32x16, ends[0] + len(words), "vocabulary and neuron predictors")
        self.scales = _allocate(f16x16, ends[1] + len(scales), "scales of vocabulary and neuron predictors")
        for array, before, behind in zip((self.words, self.scales), views, (words, scales), strict=True):
            host_view(array)[: len(before)] = before
            host_view(array)[len(before) :][: len(behind)] = behind

    @property
    def vocabulary_ends(self) -> tuple[int, int]:
        """Vectors of words and of scales that the tiles of the vocabulary take."""
        tiles = (2 if self.map.head_tile else 1) * self.map.vocabulary_tiles
        hidden = self.map.config.hidden_size
        return tiles * hidden, tiles * hidden // 32 * 4

    def _load_vocabulary(self, container: Container) -> None:
        """Embedding tiles first, then the head's unless they are the same, or it is no tiles."""
        matrices = [container.embedding.tensor] + ([container.head.tensor] if self.map.head_tile else [])
        words_end, scales_end = self.vocabulary_ends
        self.words = _allocate(u32x16, words_end, "vocabulary")
        self.scales = _allocate(f16x16, scales_end, "vocabulary scales")
        for i, name in enumerate(matrices):
            words, scales = tile(container.read(name))
            host_view(self.words)[i * len(words) : (i + 1) * len(words)] = words
            host_view(self.scales)[i * len(scales) : (i + 1) * len(scales)] = scales


def _allocate(dtype: Any, vectors: int, what: str) -> ti.Ndarray:
    if vectors > _MAX_VECTORS:
        raise BackendError(f"{what}: {vectors} vectors are more than kernels can index in one array ({_MAX_VECTORS})")
    array = ndarray(dtype, (max(1, vectors),))
    host_view(array)[:] = 0
    return array
