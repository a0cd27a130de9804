"""What the quantisers of all schemes share: how superblocks get to lanes, and where their bytes go.

A *tile* is 16 superblocks side by side, one per lane of a native 16-lane vector. Every lane runs ggml's algorithm in
ggml's order, so its f32 results are ggml's; conditions become selects. Tiles are independent, and workers draw them
from a counter.

Native vectors take arithmetic, min, max, select, comparisons and sqrt; abs, negation, casts and bit casts break LLVM
(Taichi 1.7.4), so the code goes without them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spqt_ti.backend import ti
from spqt_ti.formats.layout import BAND
from spqt_ti.formats.scheme import Scheme

__all__ = [
    "F16_MAX",
    "LANES",
    "ROUND",
    "Packer",
    "half",
    "lanes",
    "make_packer",
    "outside",
    "store_half",
    "store_pairs",
]

LANES = 16
ROUND = 12582912.0  # 1.5 * 2**23: adding and subtracting it rounds to an integer, halves to even
LIMIT = 4194303.0  # where ggml's rounding stops being rounding
F16_MAX = 65504.0

lanes = ti.types.vector(LANES, ti.f32)
Floats = ti.types.ndarray(ti.f32, 1)
Bytes: Any = ti.types.ndarray(ti.u8, 1)
Ints: Any = ti.types.ndarray(ti.i32, 1)
Lanes = ti.types.ndarray(lanes, 1)


@dataclass(frozen=True)
class Packer:
    """The kernel of a scheme, the vectors of scratch that each of its workers needs, and what it is made of (see
    `make_packer`).
    """

    scheme: Scheme
    scratch: int
    launch: Callable[..., Any]
    quantise: Any
    store: Any
    value: Any
    closest: Any


def make_packer(
    scheme: Scheme, scratch_vectors: int, quantise: Any, store: Any, value: Any, closest: Any = None
) -> Packer:  # fmt: skip
    """The kernel that quantises matrices.

    `quantise(scratch, here)` finds the tile in the first `values` vectors from `here`, leaves there what `store` needs
    and returns 1.0 in lanes that NumPy has to redo. `store(scratch, here, lane, units, out, at)` writes the first
    `units` units of a lane's superblock to `out` from byte `at`. `value(scratch, here, k)` gives value `k` as it can be
    read again. `closest`: as `quantise`, for the least squared error instead of ggml's bytes, where a scheme has that.
    """
    values, unit, size = scheme.values, scheme.unit, scheme.bytes
    per_column = BAND // values
    column = per_column * size
    load = _make_load(values)

    @ti.kernel
    def pack(src: Floats, out: Bytes, flags: Bytes, scratch: Lanes, numbers: Ints, workers: ti.i32):
        """Superblocks u8 of `src` f32 `[rows * cols]` into `out`; `flags[i]` = 1 where superblock `i` is to be redone.

        `numbers`: a counter from 0, superblocks, rows, columns, 1 for zigzag, bytes of a column of the last band.
        """
        ti.loop_config(block_dim=1)
        for worker in range(workers):
            here = worker * scratch_vectors
            superblocks = numbers[1]
            rows = numbers[2]
            cols = numbers[3]
            zigzag = numbers[4]
            last = numbers[5]
            tile = ti.atomic_add(numbers[0], 1)
            while tile * LANES < superblocks:
                load(src, scratch, here, tile * LANES, superblocks, rows, cols, zigzag)
                bad = quantise(scratch, here)
                for lane in range(ti.min(LANES, superblocks - tile * LANES)):
                    number = tile * LANES + lane
                    units = values // unit
                    at = number * size
                    if zigzag:
                        row = number // cols  # of superblocks
                        band = row // per_column
                        units = (ti.min(values, rows - row * values) + unit - 1) // unit
                        width = column
                        if (band + 1) * BAND > rows:
                            width = last
                        at = band * cols * column + (number - row * cols) * width + (row - band * per_column) * size
                    store(scratch, here, lane, units, out, at)
                    if bad[lane] > 0.0:
                        flags[number] = ti.u8(1)
                tile = ti.atomic_add(numbers[0], 1)

    return Packer(scheme, scratch_vectors, pack, quantise, store, value, closest or quantise)


def _make_load(values: int) -> Any:
    @ti.func
    def load(src: ti.template(), scratch: ti.template(), here, first, superblocks, rows, cols, zigzag):
        """Gather 16 superblocks from `first` into the tile, value by value, zeros beyond the matrix."""
        start_at = ti.Vector([0] * LANES)
        count = ti.Vector([0] * LANES)
        stride = 1
        if zigzag:
            stride = cols
        for i in ti.static(range(LANES)):
            number = ti.min(first + i, superblocks - 1)
            if zigzag:
                row = number // cols
                start_at[i] = row * ((values - 1) * cols) + number
                count[i] = ti.min(values, rows - row * values)
            else:
                per_row = (cols + values - 1) // values
                row = number // per_row
                column = (number - row * per_row) * values
                start_at[i] = row * cols + column
                count[i] = ti.min(values, cols - column)
        for k in range(values):
            v = lanes(0.0)
            for i in ti.static(range(LANES)):
                value = src[start_at[i] + ti.min(k, count[i] - 1) * stride]
                v[i] = ti.select(k < count[i], value, 0.0)
            scratch[here + k] = v

    return load


@ti.func
def extreme(scratch: ti.template(), first, count: ti.template()):
    """The value of largest magnitude among `count` from `first` on, the first among equals; 0 where all are."""
    size = lanes(0.0)
    found = lanes(0.0)
    for i in range(count):
        value = scratch[first + i]
        magnitude = ti.max(value, 0.0 - value)
        larger = magnitude > size
        found = ti.select(larger, value, found)
        size = ti.select(larger, magnitude, size)
    return found


@ti.func
def outside(value):
    """1.0 in lanes where `value` is beyond ggml's rounding range or NaN."""
    return ti.select((value > -LIMIT) & (value < LIMIT), lanes(0.0), lanes(1.0))


@ti.func
def half(value):
    """Each lane rounded to f16, as f32."""
    rounded = lanes(0.0)
    for i in ti.static(range(LANES)):
        rounded[i] = ti.cast(ti.cast(value[i], ti.f16), ti.f32)
    return rounded


@ti.func
def store_half(out: ti.template(), at, value):
    """An f16 to two bytes."""
    bits = ti.cast(ti.bit_cast(ti.cast(value, ti.f16), ti.u16), ti.i32)
    out[at] = ti.cast(bits & 255, ti.u8)
    out[at + 1] = ti.cast(bits >> 8, ti.u8)


@ti.func
def store_pairs(scratch: ti.template(), tile, lane, units, out: ti.template(), at):
    """The low two bits of the quants at `tile`, of the first `units` halves of 128, as `formats.pairs` has them."""
    for h in range(units):
        for i in range(32):
            byte = 0
            for k in range(4):
                byte |= (ti.cast(scratch[tile + 128 * h + 32 * k + i][lane], ti.i32) & 3) << (2 * k)
            out[at + 32 * h + i] = ti.cast(byte, ti.u8)
