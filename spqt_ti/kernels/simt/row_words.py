"""The weights of a matrix in the row layout as GPU kernels read them: quants and headers apart, in the words of their
scheme's decoder (schemes/). A piece is 256 columns of a row; the last one of a row is completed with zeros.
"""

from dataclasses import dataclass

import numpy as np

from spqt_ti.formats import layout, q4_k
from spqt_ti.formats.scheme import Scheme
from spqt_ti.kernels.simt.groups import round_up
from spqt_ti.kernels.simt.schemes import Decoder, decoder_of
from spqt_ti.kernels.simt.schemes.decoder import PARTS, PIECE, U32Array

ROWS = 4  # of a group of the GEMV


@dataclass(frozen=True)
class RowWords:
    """Where a matrix [rows, cols] of a scheme lies in its two arrays of four words each."""

    rows: int
    cols: int
    scheme: Scheme = q4_k.SCHEME

    @property
    def decoder(self) -> Decoder:
        return decoder_of(self.scheme)

    @property
    def per_row(self) -> int:
        """Pieces of a row."""
        return -(-self.cols // PIECE)

    @property
    def padded_rows(self) -> int:
        """Rows that the GEMV writes: whole groups."""
        return round_up(self.rows, ROWS)

    @property
    def pieces(self) -> int:
        return self.rows * self.per_row

    @property
    def quants(self) -> int:
        """Entries of quants in all."""
        return self.pieces * self.decoder.entries(PARTS)

    @property
    def headers(self) -> int:
        """Entries of headers in all."""
        return self.decoder.header_entries(self.pieces)

    def unpack(self, data: np.ndarray) -> tuple[U32Array, U32Array]:
        """Stored bytes (u8 [nbytes]) -> quants u32 [self.quants, 4] and headers u32 [self.headers, 4].

        Raises QuantizationError if the number of bytes is not that of the shape.
        """
        scheme, count = self.scheme, PIECE // self.scheme.values
        superblocks = layout.superblocks(data, self.rows, self.cols, "row", scheme).reshape(self.rows, -1, scheme.bytes)
        padded = np.pad(superblocks, ((0, 0), (0, -superblocks.shape[1] % count), (0, 0)))
        pieces = padded.reshape(self.pieces, count, scheme.bytes)
        return self.decoder.quants(pieces, PARTS), self.decoder.headers(pieces)
