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
from spqt_ti.kernels.simt.head import tile
from spqt_ti.kernels.simt.products import Words, split_of, words_of
from spqt_ti.kernels.simt.row_words import RowWords
from spqt_ti.kernels.simt.splits import Split
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.sites import Site, Traffic, matrix_shapes


@dataclass(frozen=True)
class MatrixPlace:
    """A matrix: how its GEMV is split, how its inputs are collected, and its first entries (a site's: in a layer)."""

    shape: Words
    split: Split
    segments: Segments
    quants: int
    headers: int


@dataclass(frozen=True)
class WeightLayout:
    """Where everything lies in the four arrays: quants and headers (of four words each), vocabulary and its scales
    (words).

    The matrices of a layer follow one another, and behind the layers lies a head that is not tiled (`head`). Embedding
    tiles come before those of the head unless they are the same.
    """

    config: ModelConfig
    places: dict[str, MatrixPlace]
    quants_stride: int
    headers_stride: int
    tiles: int
    head_tile: int
    head: MatrixPlace | None

    @classmethod
    def plan(
        cls,
        config: ModelConfig,
        matrices: Mapping[str, MatrixInfo] | None = None,
        splits: Mapping[str, Split] | None = None,
    ) -> WeightLayout:
        """The layout of a model whose matrices (by name) are stored like this, by default as `plan_matrices` has them.
        `splits`: of each site's GEMV, by default `default_split`.

        Raises ContainerError where a site is not stored alike in all layers, or the embedding not as Q8_0 rows.
        """
        matrices = matrices if matrices is not None else plan_matrices(config)
        places, quants, headers = {}, 0, 0
        for site in Site:
            stored = _alike([matrices[matrix_name(layer, site)] for layer in range(config.num_hidden_layers)])
            shape = words_of(stored.rows, stored.cols, stored.scheme, stored.layout)
            split = split_of(shape, splits[site.label] if splits else None)
            places[site.label] = MatrixPlace(shape, split, segments_of(config, site.label), quants, headers)
            quants, headers = quants + shape.quants, headers + shape.headers
        tiles, layers = tiles_for(config.vocab_size), config.num_hidden_layers
        if not _is_tiled(matrices[EMBEDDING]):
            storage = matrices[EMBEDDING].storage
            raise ContainerError(
                f"{EMBEDDING} is stored as {storage}, and only Q8_0 rows can be embedded; quantise again"
            )
        head = matrices.get(HEAD)
        if head is None or _is_tiled(head):
            return cls(config, places, quants, headers, tiles, tiles if head else 0, None)
        shape = words_of(head.rows, head.cols, head.scheme, head.layout)
        place = MatrixPlace(shape, split_of(shape), whole(head.cols), layers * quants, layers * headers)
        return cls(config, places, quants, headers, tiles, 0, place)

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
        config, shapes = self.config, [place.shape for place in self.places.values()]
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
    return WeightLayout.plan(config, matrices).traffic()


def segments_of(config: ModelConfig, site: str) -> Segments:
    """Segments of a site's active list: what a group computes of the site's inputs, it collects."""
    cols = matrix_shapes(config)[site].cols
    return {"o": Segments(cols, config.head_dim), "down": spread(cols)}.get(site, whole(cols))


def read_words(container: Container, layout: WeightLayout) -> dict[str, np.ndarray]:
    """The arrays of a layout (name -> u32 [entries, 4] or [size]), filled from a container."""
    arrays: dict[str, np.ndarray] = {name: np.zeros(size, np.uint32) for name, size in layout.sizes().items()}
    arrays |= {name: arrays[name].reshape(-1, 4) for name in ("quants", "headers")}

    def put_matrix(matrix: MatrixInfo, place: MatrixPlace, layer: int) -> None:
        quants, headers = place.shape.split(container.read_matrix(matrix))
        _put(arrays["quants"], layer * layout.quants_stride + place.quants, quants)
        _put(arrays["headers"], layer * layout.headers_stride + place.headers, headers)

    for layer in range(layout.config.num_hidden_layers):
        for site in Site:
            put_matrix(container.matrix(layer, site), layout.places[site.label], layer)
    if layout.head is not None:
        put_matrix(container.head, layout.head, 0)
    tiled = [container.embedding, container.head] if layout.head_tile else [container.embedding]
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
