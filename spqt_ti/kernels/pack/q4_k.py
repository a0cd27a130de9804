"""The Q4_K quantiser as one Taichi kernel for the CPU, byte-identical to `formats.q4_k` (and so to ggml).

A *tile* is 16 superblocks side by side, one per lane of a native 16-lane vector. Every lane runs ggml's algorithm in
ggml's order, so its f32 results are ggml's; conditions become selects. Tiles are independent, and workers draw them
from a counter.

The kernel flags, and leaves to `formats.q4_k`, what it cannot do exactly: superblocks with values so small that results
become denormal (Taichi's workers flush those to zero) or leave +-2**22, outside which ggml's rounding is none (it reads
mantissa bits); and what has to be refused: NaN, infinity, a scale that does not fit f16. Ordinary weights are hardly
ever flagged.

Native vectors take arithmetic, min, max, select, comparisons and sqrt; abs, negation, casts and bit casts break LLVM
(Taichi 1.7.4), so the code goes without them.
"""

import numpy as np
import numpy.typing as npt

from spqt_ti.backend import ndarray, start, ti
from spqt_ti.errors import QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats import q4_k

BACKEND = "cpu"  # that quantising needs

__all__ = ["quantize_q4_k"]

LANES = 16
STEPS = 21
CHUNK_WEIGHTS = 1 << 22  # per launch, and at least a band: bounds copies and keeps indices in 32 bits
REDO_BLOCKS = 4096
ROUND = 12582912.0  # 1.5 * 2**23: adding and subtracting it rounds to an integer, halves to even
LIMIT = 4194303.0  # where ggml's rounding stops being rounding
F16_MAX = 65504.0
HUGE = 1e38
# Below these, an error term (weight * difference**2, where a difference is at least a rounding error) may be denormal.
TINY = 1e-9
TINY_RANGE = 1e-6

# One worker's scratch, in vectors: the tile (later its quants), then a sub-block's weights and levels, then what the
# search found for each sub-block.
TILE, WEIGHT, LEVEL, SCALE, LOW, KEPT_DIVISOR, KEPT_LOW, SCRATCH = 0, 256, 288, 320, 328, 336, 344, 352

lanes = ti.types.vector(LANES, ti.f32)
Floats = ti.types.ndarray(ti.f32, 1)
Bytes = ti.types.ndarray(ti.u8, 1)
Ints = ti.types.ndarray(ti.i32, 1)
Lanes = ti.types.ndarray(lanes, 1)


def quantize_q4_k(w: npt.NDArray[np.float32], layout: str, name: str = "tensor") -> npt.NDArray[np.uint8]:
    """Stored Q4_K bytes u8 `[nbytes]` of the matrix `w` f32 `[rows, cols]` in `layout` ("zigzag" or "row").

    Starts the CPU backend if none is up. Raises QuantizationError, which names the tensor, for another dtype or shape,
    an unknown layout, NaN, infinity, and values too large for Q4_K.
    """
    try:
        layouts.check_matrix(w, layout)
        return _quantize(w, layout)
    except QuantizationError as error:
        raise QuantizationError(f"{name}: {error}") from error


def _quantize(w: npt.NDArray[np.float32], layout: str) -> npt.NDArray[np.uint8]:
    """All chunks through the kernel, then the flagged superblocks through NumPy."""
    workers = start(BACKEND).threads
    scratch = ndarray(lanes, (workers * SCRATCH,))
    rows, cols = w.shape
    if cols > CHUNK_WEIGHTS:
        raise QuantizationError(f"more than {CHUNK_WEIGHTS} columns are not supported, and there are {cols}")
    out = np.empty(layouts.nbytes(rows, cols, layout, q4_k.SCHEME), np.uint8)
    step = max(1, CHUNK_WEIGHTS // (cols * q4_k.VALUES)) * q4_k.VALUES
    flags = np.zeros(_superblocks(rows, cols, layout), np.uint8)
    done = blocks_done = 0
    for first in range(0, rows, step):
        part = np.ascontiguousarray(w[first : first + step])
        size, blocks = layouts.nbytes(*part.shape, layout, q4_k.SCHEME), _superblocks(*part.shape, layout)
        _pack(
            part.reshape(-1),
            out[done : done + size],
            flags[blocks_done : blocks_done + blocks],
            scratch,
            np.zeros(1, np.int32),
            workers,
            blocks,
            *part.shape,
            layout == "zigzag",
        )
        done, blocks_done = done + size, blocks_done + blocks
    flagged = np.flatnonzero(flags)
    for start_at in range(0, len(flagged), REDO_BLOCKS):
        _redo(w, out, flagged[start_at : start_at + REDO_BLOCKS], layout)
    return out


def _superblocks(rows: int, cols: int, layout: str) -> int:
    return cols * -(-rows // q4_k.VALUES) if layout == "zigzag" else rows * -(-cols // q4_k.VALUES)


def _redo(w: npt.NDArray[np.float32], out: npt.NDArray[np.uint8], numbers: npt.NDArray[np.intp], layout: str) -> None:
    """Quantise the superblocks of these numbers with NumPy, into their places in `out`."""
    rows, cols = w.shape
    within = np.arange(q4_k.VALUES)
    if layout == "zigzag":
        band, col = np.divmod(numbers[:, None], cols)
        index, limit = band * q4_k.VALUES + within, rows
        values = w[np.minimum(index, limit - 1), col]
    else:
        row, place = np.divmod(numbers[:, None], -(-cols // q4_k.VALUES))
        index, limit = place * q4_k.VALUES + within, cols
        values = w[row, np.minimum(index, limit - 1)]
    values[index >= limit] = 0
    blocks = q4_k.quantize(values)
    full = rows // q4_k.VALUES * cols if layout == "zigzag" else len(out) // q4_k.BYTES
    split = full * q4_k.BYTES
    whole = numbers < full
    out[:split].reshape(-1, q4_k.BYTES)[numbers[whole]] = blocks[whole]
    if not whole.all():
        tail = out[split:].reshape(cols, -1)
        tail[numbers[~whole] - full] = blocks[~whole, : tail.shape[1]]


@ti.kernel
def _pack(
    src: Floats,
    out: Bytes,
    flags: Bytes,
    scratch: Lanes,
    counter: Ints,
    workers: ti.i32,
    blocks: ti.i32,
    rows: ti.i32,
    cols: ti.i32,
    zigzag: ti.i32,
):
    """Superblocks u8 of `src` f32 `[rows * cols]` into `out`; `flags[i]` = 1 where superblock `i` has to be redone."""
    ti.loop_config(block_dim=1)
    for worker in range(workers):
        here = worker * SCRATCH
        tile = ti.atomic_add(counter[0], 1)
        while tile * LANES < blocks:
            _load(src, scratch, here, tile * LANES, blocks, rows, cols, zigzag)
            bad = lanes(0.0)
            for j in range(8):
                bad = ti.max(bad, _search(scratch, here, j))
            d, multiple_bad = _six_bits(scratch, here + SCALE)
            dmin, min_bad = _six_bits(scratch, here + LOW)
            bad = ti.max(bad, ti.max(multiple_bad, min_bad))
            for j in range(8):
                bad = ti.max(bad, _requantise(scratch, here, j, d, dmin))
            for lane in range(ti.min(LANES, blocks - tile * LANES)):
                _store(scratch, here, lane, d[lane], dmin[lane], out, tile * LANES + lane, rows, cols, zigzag)
                if bad[lane] > 0.0:
                    flags[tile * LANES + lane] = ti.u8(1)
            tile = ti.atomic_add(counter[0], 1)


@ti.func
def _load(src: ti.template(), scratch: ti.template(), here, first, blocks, rows, cols, zigzag):
    """Gather 16 superblocks from `first` into the tile, value by value, zeros beyond the matrix."""
    start_at = ti.Vector([0] * LANES)
    count = ti.Vector([0] * LANES)
    stride = 1
    if zigzag:
        stride = cols
    for i in ti.static(range(LANES)):
        number = ti.min(first + i, blocks - 1)
        if zigzag:
            band = number // cols
            start_at[i] = band * (255 * cols) + number
            count[i] = ti.min(256, rows - band * 256)
        else:
            per_row = (cols + 255) // 256
            row = number // per_row
            place = (number - row * per_row) * 256
            start_at[i] = row * cols + place
            count[i] = ti.min(256, cols - place)
    for k in range(256):
        v = lanes(0.0)
        for i in ti.static(range(LANES)):
            value = src[start_at[i] + ti.min(k, count[i] - 1) * stride]
            v[i] = ti.select(k < count[i], value, 0.0)
        scratch[here + TILE + k] = v


@ti.func
def _levels(x, divisor, low):
    """Quants 0..15 as floats. The clamp may come first: it keeps the sum small enough to round."""
    return ti.min(ti.max(divisor * (x - low), 0.0), 15.0) + ROUND - ROUND


@ti.func
def _outside(value):
    """1.0 in lanes where `value` is beyond ggml's rounding range or NaN."""
    return ti.select((value > -LIMIT) & (value < LIMIT), lanes(0.0), lanes(1.0))


@ti.func
def _search(scratch: ti.template(), here, j):
    """Scale, minimum and best fit of sub-block `j`, as `formats.q4_k._search`; returns the lanes it cannot do."""
    tile = here + TILE + j * 32
    square = lanes(0.0)
    high = scratch[tile]
    lowest = scratch[tile]
    for i in range(32):
        x = scratch[tile + i]
        square += x * x
        high = ti.max(high, x)
        lowest = ti.min(lowest, x)
    average = ti.sqrt(square / 32.0)
    sum_w = lanes(0.0)
    sum_x = lanes(0.0)
    smallest = lanes(1.0)
    for i in range(32):
        x = scratch[tile + i]
        size = ti.max(x, 0.0 - x)
        smallest = ti.min(smallest, ti.select(size > 0.0, size, lanes(1.0)))
        w = average + size
        scratch[here + WEIGHT + i] = w
        sum_w += w
        sum_x += w * x
    low = ti.min(lowest, 0.0)
    flat = high == low
    divisor = 15.0 / (high - low)
    scale = 1.0 / divisor
    kept_divisor = divisor
    kept_low = low
    # The sum of squares catches NaN, which comparisons may lose, and infinity.
    bad = ti.select((square < HUGE) & (smallest >= TINY) & (high - low >= TINY_RANGE), lanes(0.0), lanes(1.0))
    bad = ti.max(bad, ti.max(_outside(divisor * (high - low)), _outside(divisor * (lowest - low))))
    best = lanes(0.0)
    for i in range(32):
        x = scratch[tile + i]
        difference = scale * _levels(x, divisor, low) + low - x
        best += scratch[here + WEIGHT + i] * (difference * difference)
    for step in range(STEPS):
        divisor = (-1.0 + 0.1 * ti.cast(step, ti.f32) + 15.0) / (high - low)
        bad = ti.max(bad, ti.max(_outside(divisor * (high - low)), _outside(divisor * (lowest - low))))
        sum_l = lanes(0.0)
        sum_l2 = lanes(0.0)
        sum_xl = lanes(0.0)
        for i in range(32):
            x = scratch[tile + i]
            level = _levels(x, divisor, low)
            scratch[here + LEVEL + i] = level
            wl = scratch[here + WEIGHT + i] * level
            sum_l += wl
            sum_l2 += wl * level
            sum_xl += wl * x
        det = sum_w * sum_l2 - sum_l * sum_l
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / det
        new_scale = ti.select(new_low > 0.0, sum_xl / sum_l2, (sum_w * sum_xl - sum_x * sum_l) / det)
        new_low = ti.min(new_low, 0.0)
        error = lanes(0.0)
        for i in range(32):
            difference = new_scale * scratch[here + LEVEL + i] + new_low - scratch[tile + i]
            error += scratch[here + WEIGHT + i] * (difference * difference)
        better = (det > 0.0) & (error < best)
        kept_divisor = ti.select(better, divisor, kept_divisor)
        kept_low = ti.select(better, low, kept_low)
        best = ti.select(better, error, best)
        scale = ti.select(better, new_scale, scale)
        low = ti.select(better, new_low, low)
    zero = lanes(0.0)
    scratch[here + SCALE + j] = ti.select(flat, zero, scale)
    scratch[here + LOW + j] = 0.0 - low
    scratch[here + KEPT_DIVISOR + j] = ti.select(flat, zero, kept_divisor)
    scratch[here + KEPT_LOW + j] = ti.select(flat, zero, kept_low)
    return ti.select(flat & (square < HUGE) & (smallest >= TINY), zero, bad)


@ti.func
def _six_bits(scratch: ti.template(), parts):
    """Replace 8 scales (or minima) by their 6-bit multiples; return the f16-rounded super-scale and the bad lanes."""
    largest = lanes(0.0)
    for j in range(8):
        largest = ti.max(largest, scratch[parts + j])
    inverse = ti.select(largest > 0.0, 63.0 / largest, lanes(0.0))
    bad = lanes(0.0)
    for j in range(8):
        v = inverse * scratch[parts + j]
        # Below zero ggml wraps around in a byte: rare enough to leave to NumPy.
        bad = ti.max(bad, ti.select((v >= -0.5) & (v < 64.0), lanes(0.0), lanes(1.0)))
        scratch[parts + j] = ti.min(ti.max(v, 0.0), 63.0) + ROUND - ROUND
    exact = largest / 63.0
    rounded = lanes(0.0)
    for i in ti.static(range(LANES)):
        rounded[i] = ti.cast(ti.cast(exact[i], ti.f16), ti.f32)
    return rounded, ti.max(bad, ti.select(rounded <= F16_MAX, lanes(0.0), lanes(1.0)))


@ti.func
def _requantise(scratch: ti.template(), here, j, d, dmin):
    """Overwrite sub-block `j` of the tile with its final quants (as floats); return the bad lanes."""
    tile = here + TILE + j * 32
    step = d * scratch[here + SCALE + j]
    offset = dmin * scratch[here + LOW + j]
    divisor = scratch[here + KEPT_DIVISOR + j]
    low = scratch[here + KEPT_LOW + j]
    keep = step == 0.0
    bad = lanes(0.0)
    for i in range(32):
        x = scratch[tile + i]
        v = (x + offset) / step
        bad = ti.max(bad, _outside(v))
        level = ti.min(ti.max(v, 0.0), 15.0) + ROUND - ROUND
        scratch[tile + i] = ti.select(keep, _levels(x, divisor, low), level)
    return ti.select(keep, lanes(0.0), bad)


@ti.func
def _store(scratch: ti.template(), here, lane, d, dmin, out: ti.template(), number, rows, cols, zigzag):
    """Write one lane as superblock `number`: header, then as many pairs of sub-blocks as the layout stores."""
    pairs = 4
    at = number * 144
    if zigzag:
        band = number // cols
        pairs = (ti.min(256, rows - band * 256) + 63) // 64
        at = band * cols * 144 + (number - band * cols) * (16 + 32 * pairs)
    _store_half(out, at, d)
    _store_half(out, at + 2, dmin)
    for j in range(4):
        scale = ti.cast(scratch[here + SCALE + j][lane], ti.i32)
        low = ti.cast(scratch[here + LOW + j][lane], ti.i32)
        scale4 = ti.cast(scratch[here + SCALE + 4 + j][lane], ti.i32)
        low4 = ti.cast(scratch[here + LOW + 4 + j][lane], ti.i32)
        out[at + 4 + j] = ti.cast(scale | ((scale4 >> 4) << 6), ti.u8)
        out[at + 8 + j] = ti.cast(low | ((low4 >> 4) << 6), ti.u8)
        out[at + 12 + j] = ti.cast((scale4 & 15) | ((low4 & 15) << 4), ti.u8)
    for k in range(pairs):
        for i in range(32):
            a = scratch[here + TILE + k * 64 + i][lane]
            b = scratch[here + TILE + k * 64 + 32 + i][lane]
            out[at + 16 + k * 32 + i] = ti.cast(a + 16.0 * b, ti.u8)


@ti.func
def _store_half(out: ti.template(), at, value):
    bits = ti.cast(ti.bit_cast(ti.cast(value, ti.f16), ti.u16), ti.i32)
    out[at] = ti.cast(bits & 255, ti.u8)
    out[at + 1] = ti.cast(bits >> 8, ti.u8)
