"""The vocabulary matrix on GPUs: embeddings, logits, and the token of the highest logit.

A Q8_0 one is stored in the tiles of kernels/shared/vocabulary.py, their f16 scales two in a word. A group has a tile of
64 rows: thread t reads the words of lane t & 15 in every sixteenth block of 32 columns. A head of another scheme or
layout is a matrix like others, whose GEMV comes before `score_rows`.
"""

from typing import Any, NamedTuple

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.kernels.shared import vocabulary
from spqt_ti.kernels.shared.geometry import TILE_ROWS
from spqt_ti.kernels.shared.words import INFINITY_BITS, half
from spqt_ti.kernels.simt.groups import LOWEST, SHARED, group_best, zero

THREADS = 256
_SLICES = THREADS // 16
HIGHEST = 3.4028234e38  # stands for what is not a finite number


class Tiles(NamedTuple):
    """A vocabulary matrix in arrays of tiles: words, scales, and its first tile."""

    words: Any
    scales: Any
    first: Any


class Best(NamedTuple):
    """The highest logit of each part of the vocabulary, and its row: offsets in an array of f32 and in one of i32."""

    values: Any
    values_at: Any
    rows: Any
    rows_at: Any


def tile(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q8_0 blocks u8 [rows, cols / 32, 34] -> words u32 [tiles * cols * 16] and scales u32 [tiles * cols]."""
    words, scales = vocabulary.tile(blocks)
    return words.reshape(-1), scales.reshape(-1).view("<u4")


def make_embed(cols: int, factor: float = 1.0):
    """Build the ti.func of one value of a token's embedding, which is `factor` times a row of a vocabulary matrix of
    `cols` columns.
    """
    scale_of = _make_scale_of(cols)

    @ti.func
    def embed(words: ti.template(), scales: ti.template(), row, column):
        lane = row & 15
        part = (row >> 4) & 3
        word = words[((row >> 6) * cols + column) * 16 + lane]
        q = ti.cast((word >> ti.cast(8 * part, ti.u32)) & 255, ti.i32) - 128
        value = scale_of(scales, row >> 6, column >> 5, part, lane) * q
        if ti.static(factor != 1.0):
            value *= factor
        return value

    return embed


@ti.func
def rank_of(logit):
    """What a logit counts as in the search for the highest: HIGHEST where it is not a finite number."""
    bits = ti.bit_cast(logit, ti.u32) & ti.u32(INFINITY_BITS)
    return ti.select(bits == ti.u32(INFINITY_BITS), HIGHEST, logit)


def make_tile_product(cols: int):
    """Build the ti.func (tiles, tile, a, x, shared, t): for thread t < 64 of a group the product of row t of a tile
    with a[x : x + cols], for the others 0. `shared`: f32 [SHARED].
    """
    blocks, scale_of = cols // 32, _make_scale_of(cols)

    @ti.func
    def tile_product(tiles: ti.template(), tile, a: ti.template(), x, shared: ti.template(), t):
        lane = t & 15
        totals = ti.Vector([0.0] * 4)
        block = t >> 4
        while block < blocks:
            sums = ti.Vector([0.0] * 4)
            x_sum = 0.0
            at = ((tiles.first + tile) * blocks + block) * 32 * 16 + lane
            for j in range(32):
                value = a[x + block * 32 + j]
                x_sum += value
                word = tiles.words[at + j * 16]
                for part in ti.static(range(3)):
                    sums[part] += value * ((word & (255 << (8 * part))) * 1.0)
                sums[3] += value * ((word >> 24) * 1.0)
            for part in ti.static(range(4)):
                exact = sums[part] * ti.static(2.0 ** (-8 * part) if part < 3 else 1.0) - 128.0 * x_sum
                totals[part] += exact * scale_of(tiles.scales, tiles.first + tile, block, part, lane)
            block += _SLICES
        ti.simt.block.sync()
        for part in ti.static(range(4)):
            shared[(t >> 4) * TILE_ROWS + part * 16 + lane] = totals[part]
        ti.simt.block.sync()
        total = 0.0
        if t < TILE_ROWS:
            for part in ti.static(range(_SLICES)):
                total += shared[part * TILE_ROWS + t]
        return total

    return tile_product


def make_score_tile(cols: int, rows: int):
    """Build the ti.func `score_tile` of a vocabulary matrix [rows, cols]."""
    tile_product = make_tile_product(cols)

    @ti.func
    def score_tile(
        tiles: ti.template(), tile, a: ti.template(), x, logits: ti.template(), best: ti.template(), t
    ):  # fmt: skip
        """Logits of the 64 rows of `tile` for a[x : x + cols] to logits[64 tile :]; the highest of them to the tile's
        entry in `best`. One that is not a finite number counts as HIGHEST there.
        """
        shared = ti.simt.block.SharedArray((SHARED,), ti.f32)  # _SLICES * TILE_ROWS
        numbers = ti.simt.block.SharedArray((SHARED,), ti.i32)
        row, total = tile * TILE_ROWS + t, tile_product(tiles, tile, a, x, shared, t)
        if t < TILE_ROWS:
            logits[row] = total
            total = rank_of(total)
            if row >= rows:
                total = LOWEST
        else:
            total = LOWEST
        ti.simt.block.sync()
        shared[t] = total
        numbers[t] = row
        group_best(shared, numbers, t, TILE_ROWS)
        if t == 0:
            best.values[best.values_at + tile] = shared[t]
            best.rows[best.rows_at + tile] = numbers[t]

    return score_tile


def make_score_rows(rows: int, row_of: Any):
    """Build the ti.func of the logits of THREADS rows, which another task has multiplied: `row_of` as of
    kernels/simt/products.py.
    """

    @ti.func
    def score_rows(group, a: ti.template(), partial, logits: ti.template(), best: ti.template(), t):
        """Logits of the rows from THREADS * group on; the highest of them to the group's entry of `best`."""
        shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
        numbers = ti.simt.block.SharedArray((SHARED,), ti.i32)
        row = group * THREADS + t
        total = LOWEST
        if row < rows:
            total = row_of(a, partial, row)
            logits[row] = total
            total = rank_of(total)
        ti.simt.block.sync()
        shared[t] = total
        numbers[t] = row
        group_best(shared, numbers, t, THREADS)
        if t == 0:
            best.values[best.values_at + group] = shared[t]
            best.rows[best.rows_at + group] = numbers[t]

    return score_rows


def make_best_token(rows: int, parts: int):
    """Build the ti.func of the row of the highest logit, from the best of so many parts."""

    @ti.func
    def best_token(best: ti.template(), t):
        """For every thread of a group; the lowest row among equals. -1 where a logit is not a finite number."""
        shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
        numbers = ti.simt.block.SharedArray((SHARED,), ti.i32)
        highest = LOWEST
        row = rows
        part = t
        while part < parts:
            if best.values[best.values_at + part] > highest:
                highest = best.values[best.values_at + part]
                row = best.rows[best.rows_at + part]
            part += THREADS
        ti.simt.block.sync()
        shared[t] = highest
        numbers[t] = row
        group_best(shared, numbers, t, THREADS)
        return ti.select(shared[zero(t)] < HIGHEST, numbers[zero(t)], -1)

    return best_token


def _make_scale_of(cols: int):
    blocks = cols // 32

    @ti.func
    def scale_of(scales: ti.template(), tile, block, part, lane):
        """Scale of row 16 part + lane of a tile, for a block of 32 columns."""
        at = ((tile * blocks + block) * 4 + part) * 16 + lane
        return half(scales[at >> 1] >> ti.cast((at & 1) * 16, ti.u32))

    return scale_of
