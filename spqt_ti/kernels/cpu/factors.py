"""Products with the factors of a low-rank matrix, stored as Q8_0 in tiles of 64 rows (see head.py)."""

from typing import Any, NamedTuple

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.head import make_tile_sums
from spqt_ti.kernels.cpu.vectors import f32x16
from spqt_ti.kernels.cpu.workers import share_start


class Factor(NamedTuple):
    """A matrix in tiles: words and scales with its first vector in each, its tiles, and blocks of 32 columns."""

    words: Any
    words_base: Any
    scales: Any
    scales_base: Any
    tiles: Any
    blocks: Any


def make_factor_product(workers: int):
    """Build the ti.func (factor, by_rows, x, x_base, y, y_base, worker) of a worker's part of y = F x, in vectors.

    `by_rows`: the workers share the tiles of one y. Otherwise they share the columns, which suits few rows: each has
    its own y, and the sum of all is F x. A number at run time, so that both compile once.
    """
    add_blocks = make_tile_sums()

    @ti.func
    def multiply(f: ti.template(), by_rows, x: ti.template(), x_base, y: ti.template(), y_base, worker):
        first_tile, last_tile, first, last = 0, 0 + f.tiles, 0, 0 + f.blocks
        if by_rows:
            first_tile = share_start(f.tiles, worker, workers)
            last_tile = share_start(f.tiles, worker + 1, workers)
        else:
            first = share_start(f.blocks, worker, workers)
            last = share_start(f.blocks, worker + 1, workers)
        for tile in range(first_tile, last_tile):
            totals = [f32x16(0.0) for _ in ti.static(range(4))]
            words, scales = f.words_base + tile * f.blocks * 32, f.scales_base + tile * f.blocks * 4
            add_blocks(f.words, words, f.scales, scales, first, last, x, x_base, totals)
            for b in ti.static(range(4)):
                y[y_base + 4 * tile + b] = totals[b]

    return multiply
