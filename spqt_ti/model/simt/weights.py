"""A model's weights as GPU kernels read them: stored bytes in arrays of words, and where each matrix lies in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spqt_ti.container import Container, MatrixInfo, plan_matrices
from spqt_ti.container.matrices import DEFAULT_STORAGE, EMBEDDING, HEAD, matrix_name
from spqt_ti.errors import ContainerError
from spqt_ti.kernels.shared.geometry import TILE_COLUMN_BYTES, tiles_for
from spqt_ti.kernels.simt.active_list import Segments, spread, whole
from spqt_ti.kernels.simt.division import Division
from spqt_ti.kernels.simt.head import tile
from spqt_ti.kernels.simt.products import Words, division_of, words_of
from spqt_ti.kernels.simt.row_words import RowWords
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.sites import Site, Traffic, matrix_shapes


@dataclass(frozen=True)
class MatrixMap:
    """A matrix: how its GEMV is shared out and its inputs are collected; its first entries (a site's: in a layer)."""

    shape: Words
    division: Division
    segments: Segments
    quants: int
    headers: int


@dataclass(frozen=True)
class WeightMap:
    """Where everything lies in the four arrays: quants and headers (of four words each), vocabulary and its scales
    (words).

    The matrices of a layer follow one another, and behind the layers lies a head that is not tiled (`head`). Embedding
    tiles come before those of the head unless they are the same.
    """

    config: ModelConfig
    matrices: dict[str, MatrixMap]
    quants_stride: int
    headers_stride: int
    tiles: int
    head_tile: int
    head: MatrixMap | None

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        matrices: Mapping[str, MatrixInfo] | None = None,
        divisions: Mapping[str, Division] | None = None,
    ) -> WeightMap:
        """The layout of a model whose matrices (by name) are stored like this, by default as `plan_matrices` has them.
        `divisions`: of each site's GEMV, by default `default_division`.

        Raises ContainerError where a site is not stored alike in all layers, or the embedding not as Q8_0 rows.
        """
        matrices = matrices if matrices is not None else plan_matrices(config)
        matrix_maps, quants, headers = {}, 0, 0
        for site in Site:
            stored = _alike([matrices[matrix_name(layer, site)] for layer in range(config.num_hidden_layers)])
            shape = words_of(stored.rows, stored.cols, stored.scheme, stored.layout)
            division = division_of(shape, divisions[site.label] if divisions else None)
            matrix_maps[site.label] = MatrixMap(shape, division, segments_of(config, site.label), quants, headers)
            quants, headers = quants + shape.quants, headers + shape.headers
        tiles, layers = tiles_for(config.vocab_size), config.num_hidden_layers
        if not _is_tiled(matrices[EMBEDDING]):
            storage = matrices[EMBEDDING].storage
            raise ContainerError(
                f"{EMBEDDING} is stored as {storage}, and only Q8_0 rows can be embedded; quantise again"
            )
        head = matrices.get(HEAD)
        if head is None or _is_tiled(head):
            return cls(config, matrix_maps, quants, headers, tiles, tiles if head else 0, None)
        shape = words_of(head.rows, head.cols, head.scheme, head.layout)
        matrix_map = MatrixMap(shape, division_of(shape), whole(head.cols), layers * quants, layers * headers)
        return cls(config, matrix_maps, quants, headers, tiles, 0, matrix_map)

    @property
    def head_arrays(self) -> tuple[str, str]:
        """Names of the arrays that have the head (see ModelArrays)."""
        return ("words", "scales") if self.head is None else ("quants", "headers")

    def sizes(self) -> dict[str, int]:
        """Words of each array."""
        layers, tiles = self.config.num_hidden_layers, self.tiles + self.head_tile
        head = (self.head.shape.quants, self.head.shape.headers) if self.head else (0, 0)
        return {
            "quants": 4 * (layers * self.quants_stride + head[0]),
            "headers": 4 * (layers * self.headers_stride + head[1]),
            "vocabulary": tiles * self.config.hidden_size * 16,
            "vocabulary scales": tiles * self.config.hidden_size,
        }

    def traffic(self) -> Traffic:
        """What a token reads of these arrays: of a last band only the parts that it has."""
        config, shapes = self.config, [matrix_map.shape for matrix_map in self.matrices.values()]
        skipped = [not isinstance(shape, RowWords) for shape in shapes]
        columns = [_bytes(shape) / shape.cols if skips else 0 for shape, skips in zip(shapes, skipped, strict=True)]
        whole = sum(_bytes(shape) for shape, skips in zip(shapes, skipped, strict=True) if not skips)
        head = int(self.tiles * config.hidden_size * TILE_COLUMN_BYTES)
        if self.head is not None:
            head = _bytes(self.head.shape)
        layers = config.num_hidden_layers
        return Traffic(np.tile(columns, (layers, 1)), head + layers * whole)


def traffic(config: ModelConfig, matrices: Mapping[str, MatrixInfo] | None = None) -> Traffic:
    """What a token reads of a model whose matrices are stored like this, by default as `plan_matrices` has them."""
    return WeightMap.of(config, matrices).traffic()


def segments_of(config: ModelConfig, site: str) -> Segments:
    """Segments of a site's active list: what a group computes of the site's inputs, it collects."""
    cols = matrix_shapes(config)[site].cols
    return {"o": Segments(cols, config.head_dim), "down": spread(cols)}.get(site, whole(cols))


def read_words(container: Container, weight_map: WeightMap) -> dict[str, np.ndarray]:
    """The arrays of a weight_map (name -> u32 [entries, 4] or [size]), filled from a container."""
    arrays: dict[str, np.ndarray] = {name: np.zeros(size, np.uint32) for name, size in weight_map.sizes().items()}
    arrays |= {name: arrays[name].reshape(-1, 4) for name in ("quants", "headers")}

    def put_matrix(matrix: MatrixInfo, matrix_map: MatrixMap, layer: int) -> None:
        quants, headers = matrix_map.shape.unpack(container.read_matrix(matrix))
        _put(arrays["quants"], layer * weight_map.quants_stride + matrix_map.quants, quants)
        _put(arrays["headers"], layer * weight_map.headers_stride + matrix_map.headers, headers)

    for layer in range(weight_map.config.num_hidden_layers):
        for site in Site:
            put_matrix(container.matrix(layer, site), weight_map.matrices[site.label], layer)
    if weight_map.head is not None:
        put_matrix(container.head, weight_map.head, 0)
    tiled = [container.embedding, container.head] if weight_map.head_tile else [container.embedding]
    for i, matrix in enumerate(tiled):
        words, scales = tile(container.read_matrix(matrix).reshape(matrix.rows, -1, matrix.scheme.bytes))
        _put(arrays["vocabulary"], i * words.size, words)
        _put(arrays["vocabulary scales"], i * scales.size, scales)
    return arrays


def _put(array: np.ndarray, start: int, values: np.ndarray) -> None:
    array[start : start + len(values)] = values


def _is_tiled(matrix: MatrixInfo) -> bool:
    return matrix.storage == DEFAULT_STORAGE["embedding"]


def _bytes(shape: Words) -> int:
    return 16 * (shape.quants + shape.headers)


def _alike(matrices: list[MatrixInfo]) -> MatrixInfo:
    """The first of a site's matrices. ContainerError unless the others are stored as it is."""
    first = matrices[0]
    for other in matrices:
        if other.storage != first.storage:
            raise ContainerError(
                f"{other.name} is stored as {other.storage} and {first.name} as {first.storage}: GPUs run one scheme "
                "and layout per class of matrix; quantise with one for each"
            )
    return first
