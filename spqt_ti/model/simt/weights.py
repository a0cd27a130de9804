"""A model's weights as GPU kernels read them: stored bytes in arrays of words, and where each matrix lies in them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
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
class LayerSpan:
    """Neighbouring layers whose matrices have the same shapes: they run with the same kernels.

    A site's matrix in layer l begins at entry `quants + l * quants_stride + matrices[site].quants`, and so do its
    headers: `quants` and `headers` are where layer 0 would be.
    """

    first: int
    count: int
    matrices: dict[str, MatrixMap]
    quants: int
    quants_stride: int
    headers: int
    headers_stride: int

    @property
    def width(self) -> int:
        """Channels of the feed-forward network."""
        return self.matrices[Site.DOWN.label].shape.cols


@dataclass(frozen=True)
class WeightMap:
    """Where everything lies in the four arrays: quants and headers (of four words each), vocabulary and its scales
    (words).

    The matrices of a layer follow one another, and behind the layers lies a head that is not tiled (`head`). Embedding
    tiles come before those of the head unless they are the same. `matrices`: of the widest layer.
    """

    config: ModelConfig
    spans: tuple[LayerSpan, ...]
    matrices: dict[str, MatrixMap]
    quants: int  # entries of all layers
    headers: int
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
        stored = {
            site: [matrices[matrix_name(layer, site)] for layer in range(config.num_hidden_layers)] for site in Site
        }
        for of_site in stored.values():
            _check_alike(of_site)
        # One division of a site in all layers: a layer adds up what the one before has left of down's.
        shared = {}
        for site, of_site in stored.items():
            shape = _words(max(of_site, key=lambda matrix: matrix.rows * matrix.cols))
            shared[site] = division_of(shape, divisions[site.label] if divisions else None)
        spans: list[LayerSpan] = []
        quants = headers = first = 0
        for _, layers_of in itertools.groupby(enumerate(config.widths()), key=lambda item: item[1]):
            count = len(list(layers_of))
            maps = _maps(config, {site: of_site[first] for site, of_site in stored.items()}, shared)
            strides = [sum(getattr(one.shape, name) for one in maps.values()) for name in ("quants", "headers")]
            starts = quants - first * strides[0], headers - first * strides[1]
            spans.append(LayerSpan(first, count, maps, starts[0], strides[0], starts[1], strides[1]))
            quants, headers, first = quants + count * strides[0], headers + count * strides[1], first + count
        tiles, widest = tiles_for(config.vocab_size), max(spans, key=lambda span: span.width).matrices
        everything = (config, tuple(spans), widest, quants, headers, tiles)
        if not _is_tiled(matrices[EMBEDDING]):
            storage = matrices[EMBEDDING].storage
            raise ContainerError(
                f"{EMBEDDING} is stored as {storage}, and only Q8_0 rows can be embedded; quantise again"
            )
        head = matrices.get(HEAD)
        if head is None or _is_tiled(head):
            return cls(*everything, tiles if head else 0, None)
        shape = _words(head)
        return cls(*everything, 0, MatrixMap(shape, division_of(shape), whole(head.cols), quants, headers))

    def span(self, layer: int) -> LayerSpan:
        """The span that a layer is in."""
        return next(span for span in self.spans if layer < span.first + span.count)

    @property
    def head_arrays(self) -> tuple[str, str]:
        """Names of the arrays that have the head (see ModelArrays)."""
        return ("words", "scales") if self.head is None else ("quants", "headers")

    def sizes(self) -> dict[str, int]:
        """Words of each array."""
        tiles = self.tiles + self.head_tile
        head = (self.head.shape.quants, self.head.shape.headers) if self.head else (0, 0)
        return {
            "quants": 4 * (self.quants + head[0]),
            "headers": 4 * (self.headers + head[1]),
            "vocabulary": tiles * self.config.hidden_size * 16,
            "vocabulary scales": tiles * self.config.hidden_size,
        }

    def traffic(self) -> Traffic:
        """What a token reads of these arrays: of a last band only the parts that it has."""
        read_whole, columns = int(self.tiles * self.config.hidden_size * TILE_COLUMN_BYTES), []
        if self.head is not None:
            read_whole = _bytes(self.head.shape)
        for span in self.spans:
            shapes = [matrix_map.shape for matrix_map in span.matrices.values()]
            in_rows = [isinstance(shape, RowWords) for shape in shapes]
            bytes_of = [_bytes(shape) for shape in shapes]
            read_whole += span.count * sum(size for size, whole in zip(bytes_of, in_rows, strict=True) if whole)
            columns += span.count * [
                [
                    0 if whole else size / shape.cols
                    for shape, size, whole in zip(shapes, bytes_of, in_rows, strict=True)
                ]
            ]
        return Traffic(np.array(columns), read_whole)


def traffic(config: ModelConfig, matrices: Mapping[str, MatrixInfo] | None = None) -> Traffic:
    """What a token reads of a model whose matrices are stored like this, by default as `plan_matrices` has them."""
    return WeightMap.of(config, matrices).traffic()


def segments_of(config: ModelConfig, site: str) -> Segments:
    """Segments of a site's active list in the widest layer: what a group computes of its inputs, it collects."""
    cols = matrix_shapes(config)[site].cols
    return Segments(cols, config.head_dim) if site == Site.O.label else spread(cols)


def read_words(container: Container, weight_map: WeightMap) -> dict[str, np.ndarray]:
    """The arrays of a weight_map (name -> u32 [entries, 4] or [size]), filled from a container."""
    arrays: dict[str, np.ndarray] = {name: np.zeros(size, np.uint32) for name, size in weight_map.sizes().items()}
    arrays |= {name: arrays[name].reshape(-1, 4) for name in ("quants", "headers")}

    def put_matrix(matrix: MatrixInfo, matrix_map: MatrixMap, layer_quants: int = 0, layer_headers: int = 0) -> None:
        quants, headers = matrix_map.shape.unpack(container.read_matrix(matrix))
        _put(arrays["quants"], layer_quants + matrix_map.quants, quants)
        _put(arrays["headers"], layer_headers + matrix_map.headers, headers)

    def put_layer(layer: int) -> None:
        span = weight_map.span(layer)
        starts = span.quants + layer * span.quants_stride, span.headers + layer * span.headers_stride
        for site in Site:
            put_matrix(container.matrix(layer, site), span.matrices[site.label], *starts)

    with ThreadPoolExecutor() as pool:  # NumPy lets other threads compute meanwhile
        list(pool.map(put_layer, range(weight_map.config.num_hidden_layers)))
    if weight_map.head is not None:
        put_matrix(container.head, weight_map.head)
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


def _words(matrix: MatrixInfo) -> Words:
    return words_of(matrix.rows, matrix.cols, matrix.scheme, matrix.layout)


def _maps(
    config: ModelConfig, matrices: Mapping[Site, MatrixInfo], divisions: Mapping[Site, Division]
) -> dict[str, MatrixMap]:
    """Those of a layer's matrices, one after the other. Segments are as long as in the widest layer."""
    found, quants, headers = {}, 0, 0
    for site, matrix in matrices.items():
        shape, widest = _words(matrix), segments_of(config, site.label)
        segments = widest if matrix.cols == widest.cols else Segments(matrix.cols, widest.length)
        found[site.label] = MatrixMap(shape, divisions[site], segments, quants, headers)
        quants, headers = quants + shape.quants, headers + shape.headers
    return found


def _check_alike(matrices: list[MatrixInfo]) -> None:
    """ContainerError unless a site's matrices are stored alike in all layers."""
    first = matrices[0]
    for other in matrices:
        if other.storage != first.storage:
            raise ContainerError(
                f"{other.name} is stored as {other.storage} and {first.name} as {first.storage}: GPUs run one scheme "
                "and layout per class of matrix; quantise with one for each"
            )
