"""Sizes of weights as kernels read them. No Taichi here: `spqt info` asks too."""

from __future__ import annotations

from dataclasses import dataclass

from spqt_ti.formats import layout

# A tile of the vocabulary matrix (kernels/shared/vocabulary.py): rows, and bytes per column with the Q8_0 scales.
TILE_ROWS = 64
TILE_COLUMN_BYTES = TILE_ROWS * 34 / 32

LANES = 16  # of a vector: activations lie in vectors of this many f32 values on every engine
MOST_PANEL_BANDS = 32  # that can stand side by side (see ZigzagShape)
HALF_PANEL_BANDS = 16


def tiles_for(rows: int) -> int:
    """Tiles of a vocabulary of `rows` tokens."""
    return -(-rows // TILE_ROWS)


@dataclass(frozen=True)
class Planes:
    """What a column takes in a full band of 256 rows, as a scheme's kernels have it: vectors of 16 words of quants,
    vectors of 4 words of header. `tail`: a last band of at most 64 rows is stored apart, as Q4_K's is.
    """

    quant_vectors: int
    header_vectors: int
    tail: bool = False


Q4_K_PLANES = Planes(quant_vectors=2, header_vectors=1, tail=True)


@dataclass(frozen=True)
class ZigzagShape:
    """Geometry of a matrix [rows, cols] in the zigzag layout, as kernels see it.

    `full_bands` bands of 256 rows; what is left is a tail band where the scheme has them and it has at most 64 rows,
    and otherwise one more full band, completed with zeros at load: a superblock costs instructions rather than bytes,
    and the full one's code is the fastest.

    Up to `panel_bands` full bands stand side by side, in a panel: what a column has in them is one piece of memory.
    Random pieces of 128 bytes (one superblock) come from memory at a third of the speed at which it is read in order,
    pieces of 1 KiB at 60 %, pieces of 4 KiB at 75 %; pieces of 3 KiB slower than of 2 (docs/log.md). So of what is
    left after the last whole panel, more than 16 bands are two panels, the first of 16.
    """

    rows: int
    cols: int
    panel_bands: int = MOST_PANEL_BANDS
    planes: Planes = Q4_K_PLANES

    @property
    def tail_bands(self) -> int:
        """1 if the last band has at most one pair of sub-blocks, and the scheme tail bands, else 0."""
        return int(self.planes.tail and layout.band_rows(self.rows)[-1] <= 64)

    @property
    def bands(self) -> int:
        return len(layout.band_rows(self.rows))

    @property
    def full_bands(self) -> int:
        return self.bands - self.tail_bands

    @property
    def panels(self) -> list[tuple[int, int]]:
        """First band and number of bands of every panel of full bands (kernels: `panel_height`)."""
        panels, start = [], 0
        while start < self.full_bands:
            left = self.full_bands - start
            height = self.panel_bands if left >= self.panel_bands else min(left, HALF_PANEL_BANDS)
            panels.append((start, height))
            start += height
        return panels

    @property
    def padded_rows(self) -> int:
        """Rows that the kernels write: whole bands of 256."""
        return self.bands * 256

    @property
    def quant_vectors(self) -> int:
        """Vectors of 16 words."""
        return self.full_bands * self.cols * self.planes.quant_vectors

    @property
    def tail_vectors(self) -> int:
        """Vectors of 8 words: one per superblock of the tail band."""
        return self.tail_bands * self.cols

    @property
    def headers(self) -> int:
        """Vectors of 4 words; a tail band has one per column."""
        return (self.full_bands * self.planes.header_vectors + self.tail_bands) * self.cols

    @property
    def bytes_per_column(self) -> int:
        """Bytes of weights that one active input costs, padding included."""
        full = self.planes.quant_vectors * 64 + self.planes.header_vectors * 16
        return self.full_bands * full + self.tail_bands * (16 + 32)
