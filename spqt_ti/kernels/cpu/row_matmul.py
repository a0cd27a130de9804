"""Prefill's product for the row layout: Y [tokens, rows] = X [tokens, cols] W^T.

As in matmul.py the unit of work is a strip of 64 rows, of which 256 columns at a time are turned into f32: here a
superblock is decoded in a row's order and written down column by column.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.arguments import Matrix
from spqt_ti.kernels.cpu.matmul import TILE_COLUMNS, TILE_VECTORS, make_strip_product
from spqt_ti.kernels.cpu.schemes.decoder import Decoder
from spqt_ti.kernels.cpu.workers import share_start

ROW_TILE_VECTORS = TILE_VECTORS + 16  # of a worker: a superblock in its own order lies behind the tile
STRIP_ROWS = 64


def make_row_matmul(workers: int, decoder: Decoder):
    """Build the ti.func of one worker's strips.

    Arguments: a RowMatrix; columns; the array of X, Y and scratch; `tile`: the first of ROW_TILE_VECTORS vectors of the
    worker's own; Tokens, whose Y has whole strips (4 vectors each); the worker.
    """
    strip_product, decode_strip = make_strip_product(), decoder.make_decode_strip()
    in_lanes = decoder.lanes_of_four

    def column_of(strip: int, vector: int, lane: int) -> int:
        """Column of a lane that `decode_strip` wrote."""
        if not in_lanes:
            return 64 * strip + 16 * vector + lane
        return 128 * (strip // 2) + 64 * (lane // 8) + 32 * (strip % 2) + 4 * (lane % 8) + vector

    @ti.func
    def decode_rows(m: ti.template(), first, start, a: ti.template(), tile):
        """Superblock `start` of the 64 rows from `first` on; beyond the last row, that one again."""
        whole = ti.static(
            Matrix(m.quants, m.quants_base, None, 0, m.headers, m.headers_base, None, None, None, 0, 0, 0, 0)
        )
        for r in range(STRIP_ROWS):
            superblock = ti.min(first + r, m.rows - 1) * m.superblocks + start
            for strip in ti.static(range(4)):
                decode_strip(whole, superblock, 1, a, tile + TILE_VECTORS, 0, 1, strip)
                for b in ti.static(range(4)):
                    values = a[tile + TILE_VECTORS + b]
                    for i in ti.static(range(16)):
                        a[tile + 4 * ti.static(column_of(strip, b, i)) + (r >> 4)][r & 15] = values[i]

    @ti.func
    def matmul(m: ti.template(), cols, a: ti.template(), tile, tokens: ti.template(), worker):
        strips = (m.rows + STRIP_ROWS - 1) // STRIP_ROWS
        for strip in range(share_start(strips, worker, workers), share_start(strips, worker + 1, workers)):
            for i in range(m.superblocks):
                start = i * TILE_COLUMNS
                decode_rows(m, strip * STRIP_ROWS, i, a, tile)
                columns = ti.min(TILE_COLUMNS, cols - start)
                strip_product(a, tile, start, columns, tokens, tokens.y + strip * 4, 2)

    return matmul
