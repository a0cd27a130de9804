"""The weights of a zigzag matrix as GPU kernels read them: quants and headers apart, in the words of their scheme's
decoder (schemes/), pieces in their stored order. A piece is what a column has in a band of 256 rows.
"""

from dataclasses import dataclass

import numpy as np

from spqt_ti.formats import layout, q4_k
from spqt_ti.formats.scheme import Scheme
from spqt_ti.kernels.simt.division import LANES
from spqt_ti.kernels.simt.schemes import Decoder, decoder_of
from spqt_ti.kernels.simt.schemes.decoder import PARTS, PIECE, U32Array

BAND = PIECE
SLOTS = LANES // PARTS  # pieces that a simdgroup has at work


@dataclass(frozen=True)
class ZigzagWords:
    """Where a matrix [rows, cols] of a scheme lies in its two arrays of four words each."""

    rows: int
    cols: int
    scheme: Scheme = q4_k.SCHEME

    @property
    def decoder(self) -> Decoder:
        return decoder_of(self.scheme)

    @property
    def bands(self) -> int:
        return -(-self.rows // BAND)

    @property
    def padded_rows(self) -> int:
        """Rows that the kernels write: whole bands."""
        return self.bands * BAND

    @property
    def pieces(self) -> int:
        return self.bands * self.cols

    @property
    def last_parts(self) -> int:
        """Parts, of 32 rows, that a piece of the last band has: whole units of the scheme."""
        unit = self.scheme.unit
        return -(-layout.band_rows(self.rows)[-1] // unit) * unit * PARTS // PIECE

    @property
    def quants(self) -> int:
        """Entries of quants in all."""
        decoder = self.decoder
        return self.cols * ((self.bands - 1) * decoder.entries(PARTS) + decoder.entries(self.last_parts))

    @property
    def headers(self) -> int:
        """Entries of headers in all."""
        return self.decoder.header_entries(self.pieces)

    def unpack(self, data: np.ndarray) -> tuple[U32Array, U32Array]:
        """Stored bytes (u8 [nbytes]) -> quants u32 [self.quants, 4] and headers u32 [self.headers, 4].

        Raises QuantizationError if the number of bytes is not that of the shape.
        """
        scheme, cut = self.scheme, (self.bands - 1) * self.cols
        superblocks = layout.superblocks(data, self.rows, self.cols, "zigzag", scheme)
        pieces = superblocks.reshape(self.pieces, PIECE // scheme.values, scheme.bytes)
        whole, last = pieces[:cut], pieces[cut:]
        quants = (self.decoder.quants(whole, PARTS), self.decoder.quants(last, self.last_parts))
        return np.concatenate(quants), self.decoder.headers(pieces)
