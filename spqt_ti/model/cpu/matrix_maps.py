"""Where the CPU keeps each matrix of a model, and what a token reads of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from spqt_ti.container.matrices import HEAD, MatrixInfo, matrix_name, plan_matrices
from spqt_ti.formats import q8_0
from spqt_ti.kernels.cpu.gemv import preferred_panel_bands
from spqt_ti.kernels.cpu.row_layout import row_superblocks
from spqt_ti.kernels.cpu.schemes import decoder_of
from spqt_ti.kernels.cpu.schemes.decoder import Decoder
from spqt_ti.kernels.cpu.tile_sums import QUAD_BANDS
from spqt_ti.kernels.shared.geometry import TILE_COLUMN_BYTES, ZigzagShape, tiles_for
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.sites import Site, Traffic


@dataclass(frozen=True)
class Kind:
    """Matrices that one kernel serves: a decoder and a layout."""

    decoder: Decoder
    layout: str

    @classmethod
    def of(cls, matrix: MatrixInfo) -> Kind:
        """Raises QuantizationError for a scheme that the CPU has no kernels for."""
        return cls(decoder_of(matrix.scheme), matrix.layout)

    def without_tail(self) -> Kind:
        """The same with every last band completed."""
        planes = replace(self.decoder.planes, tail=False)
        return replace(self, decoder=replace(self.decoder, planes=planes, make_tail_band=None))

    @property
    def rows(self) -> bool:
        """True for the row layout: every input is read, and those that are to be skipped count as zero."""
        return self.layout == "row"


@dataclass(frozen=True)
class MatrixMap:
    """Shape of a matrix, in the row layout too, its kind, and its first vector in each of the three weight arrays."""

    shape: ZigzagShape
    kind: Kind
    quants: int
    tail: int
    headers: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Vectors of quants, tail bands and headers."""
        shape, planes = self.shape, self.shape.planes
        if self.kind.rows:
            superblocks = shape.rows * row_superblocks(shape.cols)
            return superblocks * planes.quant_vectors, 0, superblocks * planes.header_vectors
        return shape.quant_vectors, shape.tail_vectors, shape.headers

    @property
    def bytes_per_column(self) -> float:
        """Bytes of weights that an input costs, padding included; of the row layout a share of all of them."""
        if self.kind.rows:
            quants, _, headers = self.sizes
            return (quants * 64 + headers * 16) / self.shape.cols
        return self.shape.bytes_per_column


@dataclass(frozen=True)
class MatrixMaps:
    """`sites`: per layer the matrices of its sites. `head`: None where it is made of tiles (shared/vocabulary.py).
    `kinds`: those of the sites, zigzag first; `sizes`: vectors of quants, tail bands and headers, of all matrices.
    """

    sites: tuple[tuple[MatrixMap, ...], ...]
    head: MatrixMap | None
    kinds: tuple[Kind, ...]
    sizes: tuple[int, int, int]

    @classmethod
    def of(
        cls, config: ModelConfig, matrices: Mapping[str, MatrixInfo], panel_bands: Mapping[str, int | None]
    ) -> MatrixMaps:
        """Lay out a model's matrices one after the other.

        `panel_bands`: per site the number of bands side by side (see ZigzagShape); None or no entry: what kernels
        prefer.
        """
        end = (0, 0, 0)

        def put(matrix: MatrixInfo, kind: Kind, bands: int) -> MatrixMap:
            nonlocal end
            matrix_map = MatrixMap(ZigzagShape(matrix.rows, matrix.cols, bands, kind.decoder.planes), kind, *end)
            end = tuple(np.add(end, matrix_map.sizes).tolist())
            return matrix_map

        preferred = preferred_panel_bands()

        def put_site(layer: int, site: Site) -> MatrixMap:
            matrix = matrices[matrix_name(layer, site)]
            return put(matrix, Kind.of(matrix), panel_bands.get(site.label) or preferred)

        sites = tuple(tuple(put_site(layer, site) for site in Site) for layer in range(config.num_hidden_layers))
        head = matrices.get(HEAD)
        # A worker takes whole panels of the head: narrow ones, for even shares.
        matrix_map = (
            None
            if head is None or in_tiles(head)
            else put(head, Kind.of(head).without_tail(), min(QUAD_BANDS, preferred))
        )
        kinds = dict.fromkeys(matrix_map.kind for layer in sites for matrix_map in layer)
        return cls(sites, matrix_map, tuple(sorted(kinds, key=lambda kind: kind.rows)), end)

    @property
    def has_gate_up_rows(self) -> bool:
        """True where some layer has gate and up in the row layout."""
        return any(layer[Site.GATE_UP].kind.rows for layer in self.sites)

    def shape(self, site: Site) -> ZigzagShape:
        """Rows and columns of a site's matrix in the widest layer; not their planes."""
        return max((layer[site].shape for layer in self.sites), key=lambda shape: shape.rows * shape.cols)


def in_tiles(vocabulary: MatrixInfo) -> bool:
    """True for a vocabulary matrix that is kept as tiles of 64 rows."""
    return vocabulary.scheme == q8_0.SCHEME and vocabulary.layout == "row"


def traffic(config: ModelConfig, matrices: Mapping[str, MatrixInfo] | None = None) -> Traffic:
    """What a token reads of these matrices (None: stored as by default): a last band is a full one's size, but for tail
    bands of Q4_K.
    """
    maps = MatrixMaps.of(config, matrices or plan_matrices(config), {})
    columns = [[matrix_map.bytes_per_column for matrix_map in layer] for layer in maps.sites]
    head = tiles_for(config.vocab_size) * TILE_COLUMN_BYTES
    if maps.head is not None:
        head = maps.head.bytes_per_column
    return Traffic(np.array(columns), int(head * config.hidden_size))
