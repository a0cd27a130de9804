"""GEMV on the row layout (ggml's Q4_K rows): y = W x, for one token.

A superblock holds 256 inputs of one output. Word i of its quants (32 words) holds columns 64 (i / 8) + 4 (i % 8) + b
in the low nibble of byte b, and the column 32 further in the high one. With q the nibbles,

    y_row = sum_j d scale_j (q . x)_j - dmin min_j (sum x)_j        over the sub-blocks j of 32 columns.

Every worker brings x into the order of the lanes once per call and then uses it for all its rows. There are two inner
loops, as in tile_sums.py. The exact one multiplies in f32: a nibble is masked where it lies, and the power of two of
its index is in x. Where the CPU has AVX-512 VNNI or AVX2, x is rounded to 16 bits instead (a step is 1/32639 of the
largest |x| of a sub-block) and split into two signed bytes; one instruction of VNNI multiplies 64 nibbles by their high
bytes, another by the low ones. The minima are multiplied by the sums of the rounded x, so nothing but x is rounded.

Rows are split over the workers and each is summed by one of them, so y does not depend on their number. Four rows side
by side share the loads of x. The hardware's prefetcher follows one row and not four, so their weights are prefetched.
"""

import functools

import numpy as np

from spqt_ti.backend import address, host_view, ndarray, ti
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.multiply_add import make_multiply_add
from spqt_ti.kernels.cpu.row_byte_sums import AHEAD as BYTES_AHEAD
from spqt_ti.kernels.cpu.row_byte_sums import make_byte_row_sums
from spqt_ti.kernels.cpu.row_layout import (
    ROW_VECTORS,
    X_VECTORS,
    RowInputs,
    RowMatrix,
    Rows,
    row_superblocks,
    unpack,
    zero_up_to,
)
from spqt_ti.kernels.cpu.schemes import q4_k
from spqt_ti.kernels.cpu.schemes.decoder import Decoder
from spqt_ti.kernels.cpu.schemes.q4_k_fields import make_scales_and_minima, per_row
from spqt_ti.kernels.cpu.tile_sums import uses_integers
from spqt_ti.kernels.cpu.vectors import array_of, f32x16, i32x16, lane_max, lane_sum, u32x4, u32x16
from spqt_ti.kernels.cpu.workers import share_start
from spqt_ti.kernels.shared.words import NIBBLE_UNIT, nibbles_in_place

AHEAD = 12  # superblocks of each row
ROWS = 4  # side by side: they share the loads of x
_SUMS_F32, _LOWS, _SUMS_I16, _STEPS, _FLAGS = 16, 4, 8, 9, 17
_ROUND = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer in the mantissa
_ROUND_BITS = 0x4B400000
_LARGEST = 32639.0  # 127 * 256 + 127: both bytes of a rounded x are signed


@ti.func
def columns_of(a: ti.template(), base, v: ti.template(), high: ti.template(), byte: ti.template()):
    """The columns of a superblock (16 vectors of x at `base`) that are nibble `high` of byte `byte` in vector `v`."""
    start = base + 8 * v + 2 * high
    parts = [a[start], a[start + 1], a[start + 4], a[start + 5]]
    return f32x16(*[parts[i // 4][4 * (i % 4) + byte] for i in ti.static(range(16))])


@ti.func
def half_sum(v, first: ti.template()):
    """Sum of lanes first .. first + 7, as a tree."""
    s = [v[first + i] + v[first + i + 4] for i in ti.static(range(4))]
    return (s[0] + s[2]) + (s[1] + s[3])


def make_row_gemv(
    workers: int, masks: bool, skips: bool = False, exact: bool = False, decoder: Decoder = q4_k.DECODER
):  # fmt: skip
    """Build the ti.func that computes one worker's rows of y = W x. Shapes are run-time arguments.

    `masks`: inputs |x| <= threshold count as zero. `skips`, with it: the weights of a vector of inputs are left out
    where all of them are zero: naive sparsity on the row layout (B1 of the SpQt paper); the quants are read in any
    case. `exact`: in f32 on every CPU.

    Arguments: the matrix; the inputs; scratch (f32x16) with the worker's first vector of superblocks * ROW_VECTORS; y,
    an f32x16 array with its first vector; the worker. Rows of two workers may share a vector of y: lanes are written
    one by one.
    """
    order_x, row_sums, far = _make_row_sums(masks, skips, exact, decoder)

    @ti.func
    def row_gemv(
        m: ti.template(), x: ti.template(), scratch: ti.template(), scratch_base, y: ti.template(), y_base, worker
    ):  # fmt: skip
        order_x(x, m.superblocks, scratch, scratch_base)
        first = share_start(m.rows, worker, workers)
        last = share_start(m.rows, worker + 1, workers)
        together = (last - first) // ROWS
        ahead = 0 + far
        for i in range(together):
            row = first + i * ROWS
            starts = [(row + r) * m.superblocks for r in ti.static(range(ROWS))]
            following = [(row + r + ROWS) * m.superblocks for r in ti.static(range(ROWS))]
            totals = row_sums(m, ti.static(Rows(starts, following, ahead)), ROWS, scratch, scratch_base)
            for r in ti.static(range(ROWS)):
                y[y_base + ((row + r) >> 4)][(row + r) & 15] = totals[r]
        for row in range(first + together * ROWS, last):
            starts, following = [row * m.superblocks], [(row + 1) * m.superblocks]
            total = row_sums(m, ti.static(Rows(starts, following, ahead)), 1, scratch, scratch_base)
            y[y_base + (row >> 4)][row & 15] = total[0]

    return row_gemv


def make_listed_rows(exact: bool = False, decoder: Decoder = q4_k.DECODER):
    """Build the ti.funcs `order_x` and `listed_rows`, for rows of W x that a list has.

    `order_x(inputs, superblocks, scratch, scratch_base)` brings the inputs into the order of the lanes, once for all
    lists. `listed_rows(m, scratch, scratch_base, rows, y, y_base)` writes row k of the ListedRows to value k of y, from
    its vector `y_base` on, and zeros behind the last to the end of its vector. A row's value is that of `row_gemv`, bit
    for bit.
    """
    order_x, row_sums, far = _make_row_sums(False, False, exact, decoder)

    @ti.func
    def start_of(m: ti.template(), listed: ti.template(), k):
        """First superblock of the k-th row; beyond the last that one's."""
        at = listed.first + ti.min(k, listed.count - 1)
        return (listed.rows[at] + listed.offset) * m.superblocks

    @ti.func
    def listed_rows(
        m: ti.template(), scratch: ti.template(), scratch_base, listed: ti.template(), y: ti.template(), y_base
    ):  # fmt: skip
        # Whole rows ahead where one is short.
        groups = ti.max(1, far // m.superblocks)
        ahead = ti.min(far, groups * m.superblocks)
        if listed.count > 0:
            y[y_base + ((listed.count - 1) >> 4)] = f32x16(0.0)
        for i in range((listed.count + ROWS - 1) // ROWS):
            k = i * ROWS
            starts = [start_of(m, listed, k + r) for r in ti.static(range(ROWS))]
            following = [
                start_of(m, listed, k + groups * ROWS + r) - (groups - 1) * m.superblocks
                for r in ti.static(range(ROWS))
            ]
            totals = row_sums(m, ti.static(Rows(starts, following, ahead)), ROWS, scratch, scratch_base)
            for r in ti.static(range(ROWS)):
                y[y_base + (k >> 4)][(k + r) & 15] = ti.select(k + r < listed.count, totals[r], 0.0)

    return order_x, listed_rows


def _make_row_sums(masks: bool, skips: bool, exact: bool, decoder: Decoder):
    """Build `order_x` and `row_sums` of a decoder; with the number of superblocks ahead of which to fetch."""
    if decoder.byte_vectors is not None:
        if skips:
            raise ValueError(f"naive skipping is for Q4_K alone, not for {decoder.scheme.label}")
        return *make_byte_row_sums(masks, decoder.planes, decoder.byte_vectors), BYTES_AHEAD
    make = _make_row_sums_i16 if uses_integers(exact) else _make_row_sums_f32
    return *make(masks, skips), AHEAD


def _make_fetch():
    """Build the ti.func that asks for what row r of `rows` needs `rows.ahead` superblocks after `within`.

    The hardware's prefetcher follows one row in order, and loses several of them. Without the native helpers it does
    nothing.
    """
    helpers = native.load()
    prefetches = helpers is not None

    @ti.func
    def fetch_ahead(m: ti.template(), rows: ti.template(), r: ti.template(), within):
        if ti.static(prefetches):
            ahead = rows.starts[r] + within + rows.ahead
            if within + rows.ahead >= m.superblocks:
                ahead = rows.following[r] + within + rows.ahead - m.superblocks
            quants = m.quants_address + (ti.cast(m.quants_base + 2 * ahead, ti.i64) << 6)
            helpers.prefetch128(quants)
            if (ahead & 3) == 0:
                header = m.headers_address + (ti.cast(m.headers_base + ahead, ti.i64) << 4)
                helpers.prefetch64(header)

    return fetch_ahead


def _make_row_sums_f32(masks: bool, skips: bool):
    """Build `order_x` and `row_sums` in f32. Vector 8 v + 4 high + byte of ordered x goes with those nibbles of quants
    vector v; its bit in the flags says that it is not all zero.
    """
    multiply_add, _ = make_multiply_add()
    scales_and_minima = make_scales_and_minima()
    fetch_ahead = _make_fetch()

    @ti.func
    def order_x(x: ti.template(), superblocks, a: ti.template(), base):
        for within in range(superblocks):
            at = base + within * ROW_VECTORS
            flag = 0
            sums = [0.0 for _ in ti.static(range(16))]  # lanes 8 to 15, which `scales_and_minima` has the minima in
            for v in ti.static(range(2)):
                for high in ti.static(range(2)):
                    total = f32x16(0.0)
                    for byte in ti.static(range(4)):
                        lanes = columns_of(x.array, x.base + within * X_VECTORS, v, high, byte)
                        if ti.static(masks):
                            lanes = zero_up_to(lanes, x.threshold)
                        if ti.static(skips) and lane_max(ti.max(lanes, 0.0 - lanes)) > 0.0:
                            flag |= 1 << (8 * v + 4 * high + byte)
                        total += lanes
                        a[at + 8 * v + 4 * high + byte] = lanes * NIBBLE_UNIT[2 * byte + high]
                    sums[8 + 4 * v + high] = half_sum(total, 0)
                    sums[8 + 4 * v + high + 2] = half_sum(total, 8)
            a[at + _SUMS_F32] = f32x16(*sums)
            a[at + _FLAGS][0] = ti.cast(flag, ti.f32)

    @ti.func
    def row_sums(m: ti.template(), rows: ti.template(), count: ti.template(), a: ti.template(), base):
        """The products of the `count` Rows with the ordered x at a[base]."""
        totals = [f32x16(0.0) for _ in ti.static(range(count))]
        offsets = [f32x16(0.0) for _ in ti.static(range(count))]
        for within in range(m.superblocks):
            at = base + within * ROW_VECTORS
            flags = 0
            if ti.static(skips):
                flags = ti.cast(a[at + _FLAGS][0], ti.i32)
            for r in ti.static(range(count)):
                superblock = rows.starts[r] + within
                fetch_ahead(m, rows, r, within)
                both = scales_and_minima(m.headers[m.headers_base + superblock], 1.0)
                multiply_add(offsets[r], both, a[at + _SUMS_F32])
                for v in ti.static(range(2)):
                    words = m.quants[m.quants_base + 2 * superblock + v]
                    for high in ti.static(range(2)):
                        dot = f32x16(0.0)
                        for byte in ti.static(range(4)):
                            number = 8 * v + 4 * high + byte
                            if ti.static(skips):
                                if flags & (1 << number):
                                    multiply_add(dot, nibbles_in_place(words, byte, high), a[at + number])
                            else:
                                multiply_add(dot, nibbles_in_place(words, byte, high), a[at + number])
                        multiply_add(totals[r], dot, per_row(both, v, high))
        return ti.Vector([lane_sum(totals[r]) - half_sum(offsets[r], 8) for r in ti.static(range(count))])

    return order_x, row_sums


def _make_row_sums_i16(masks: bool, skips: bool):
    """Build `order_x` and `row_sums` in 16 bits. Vector 2 v + high of the bytes goes with those nibbles of quants
    vector v; its bit in the flags says that it is not all zero.
    """
    multiply_add, _ = make_multiply_add()
    scales_and_minima = make_scales_and_minima()
    fetch_ahead = _make_fetch()
    native16 = native.load_16_bits()

    @ti.func
    def kept(x: ti.template(), v):
        result = v
        if ti.static(masks):
            result = zero_up_to(v, x.threshold)
        return result

    @ti.func
    def step_of(x: ti.template(), first):
        """Step of the sub-block in x.array[first : first + 2]; NaN where one of its inputs is NaN or infinite, so that
        the products are, too.
        """
        largest = f32x16(0.0)
        spoilt = f32x16(0.0)
        for k in ti.static(range(2)):
            v = kept(x, x.array[first + k])
            largest = ti.max(largest, ti.max(v, 0.0 - v))
            spoilt += v - v
        return ti.max(lane_max(largest), 1e-30) / _LARGEST + lane_sum(spoilt)

    @ti.func
    def order_x(x: ti.template(), superblocks, a: ti.template(), base):
        for within in range(superblocks):
            at = base + within * ROW_VECTORS
            steps = [0.0 for _ in ti.static(range(8))]
            for j in ti.static(range(8)):
                steps[j] = step_of(x, x.base + within * X_VECTORS + 2 * j)
            a[at + _STEPS] = f32x16(*steps, *steps)
            flag = 0
            sums = [0.0 for _ in ti.static(range(16))]  # lanes 8 to 15, which `scales_and_minima` has the minima in
            for v in ti.static(range(2)):
                for high in ti.static(range(2)):
                    inverse = 1.0 / per_row(a[at + _STEPS], v, high)
                    high_bytes, low_bytes, total = [i32x16(0) for _ in ti.static(range(3))]
                    for byte in ti.static(range(4)):
                        rounded = kept(x, columns_of(x.array, x.base + within * X_VECTORS, v, high, byte)) * inverse
                        rounded += _ROUND
                        number = i32x16(0)
                        native16.bits_of(rounded, number)
                        number -= _ROUND_BITS
                        total += number
                        high_bytes |= (((number + 128) >> 8) & 255) << (8 * byte)
                        low_bytes |= (number & 255) << (8 * byte)
                    vectors = [f32x16(0.0) for _ in ti.static(range(2))]
                    native16.float_of(high_bytes, vectors[0])
                    native16.float_of(low_bytes, vectors[1])
                    a[at + 2 * v + high] = vectors[0]
                    a[at + _LOWS + 2 * v + high] = vectors[1]
                    totals = total * 1.0
                    sums[8 + 4 * v + high] = half_sum(totals, 0)
                    sums[8 + 4 * v + high + 2] = half_sum(totals, 8)
                    any_byte = (high_bytes | low_bytes) * 1.0
                    if ti.static(skips) and lane_max(ti.max(any_byte, 0.0 - any_byte)) > 0.0:
                        flag |= 1 << (2 * v + high)
            a[at + _SUMS_I16] = f32x16(*sums)
            a[at + _FLAGS][0] = ti.cast(flag, ti.f32)

    @ti.func
    def add_nibbles(total: ti.template(), nibbles, high_bytes, low_bytes, scale):
        """Add 64 nibbles times their x, times the scale of the lanes."""
        dot = i32x16(0)
        native16.dot4(dot, nibbles, high_bytes)
        dot = dot << 8
        native16.dot4(dot, nibbles, low_bytes)
        multiply_add(total, dot * 1.0, scale)

    @ti.func
    def row_sums(m: ti.template(), rows: ti.template(), count: ti.template(), a: ti.template(), base):
        """The products of the `count` Rows with the ordered x at a[base]."""
        totals = [f32x16(0.0) for _ in ti.static(range(count))]
        offsets = [f32x16(0.0) for _ in ti.static(range(count))]
        for within in range(m.superblocks):
            at = base + within * ROW_VECTORS
            flags = 0
            if ti.static(skips):
                flags = ti.cast(a[at + _FLAGS][0], ti.i32)
            scales = [f32x16(0.0) for _ in ti.static(range(count))]
            for r in ti.static(range(count)):
                superblock = rows.starts[r] + within
                fetch_ahead(m, rows, r, within)
                scales[r] = scales_and_minima(m.headers[m.headers_base + superblock], 1.0) * a[at + _STEPS]
                multiply_add(offsets[r], scales[r], a[at + _SUMS_I16])
            for v in ti.static(range(2)):
                words = [u32x16(0) for _ in ti.static(range(count))]
                for r in ti.static(range(count)):
                    words[r] = m.quants[m.quants_base + 2 * (rows.starts[r] + within) + v]
                for high in ti.static(range(2)):
                    native16.not_unrolled()
                    high_bytes, low_bytes = [i32x16(0) for _ in ti.static(range(2))]
                    high_floats = a[at + 2 * v + high]
                    low_floats = a[at + _LOWS + 2 * v + high]
                    native16.bits_of(high_floats, high_bytes)
                    native16.bits_of(low_floats, low_bytes)
                    for r in ti.static(range(count)):
                        nibbles = (words[r] >> (4 * high)) & 0x0F0F0F0F
                        if ti.static(skips):
                            if flags & (1 << (2 * v + high)):
                                add_nibbles(totals[r], nibbles, high_bytes, low_bytes, per_row(scales[r], v, high))
                        else:
                            add_nibbles(totals[r], nibbles, high_bytes, low_bytes, per_row(scales[r], v, high))
        return ti.Vector([lane_sum(totals[r]) - half_sum(offsets[r], 8) for r in ti.static(range(count))])

    return order_x, row_sums


@functools.cache
def make_row_gemv_kernel(
    workers: int, masks: bool, exact: bool = False, decoder: Decoder = q4_k.DECODER
):  # fmt: skip
    """The GEMV as a kernel of its own, one iteration per worker; compiled once for all shapes."""
    skips = masks and decoder.byte_vectors is None
    row_gemv = make_row_gemv(workers, masks, skips, exact, decoder)

    @ti.kernel
    def kernel(
        quants: array_of(u32x16), headers: array_of(u32x4), quants_address: ti.i64, headers_address: ti.i64,
        rows: ti.i32, superblocks: ti.i32, x: array_of(f32x16), threshold: ti.f32, scratch: array_of(f32x16),
        y: array_of(f32x16),
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            matrix = ti.static(RowMatrix(quants, 0, headers, 0, quants_address, headers_address, rows, superblocks))
            inputs = ti.static(RowInputs(x, 0, threshold))
            row_gemv(matrix, inputs, scratch, worker * superblocks * ROW_VECTORS, y, 0, worker)

    return kernel


class RowGemv:
    """One matrix [rows, cols] on the device, with its GEMV; for tests and benchmarks.

    `data`: the stored row-layout bytes (u8 [nbytes]); `exact`: see `make_row_gemv`. Raises QuantizationError where
    their number is not the shape's.
    """

    def __init__(
        self, data: np.ndarray, rows: int, cols: int, workers: int = 2, exact: bool = False,
        decoder: Decoder = q4_k.DECODER,
    ) -> None:  # fmt: skip
        self.rows, self.cols, self.workers, self.exact, self.decoder = rows, cols, workers, exact, decoder
        self.superblocks = row_superblocks(cols)
        quants, headers = unpack(data, rows, cols, decoder)
        self._quants = _upload(quants, u32x16)
        self._headers = _upload(headers, u32x4)
        self._x = _upload(np.zeros((self.superblocks * X_VECTORS, 16), np.float32), f32x16)
        self._scratch = ndarray(f32x16, (workers * self.superblocks * ROW_VECTORS,))
        self._y = ndarray(f32x16, (-(-rows // 16),))

    def __call__(self, x: np.ndarray, threshold: float | None = None) -> np.ndarray:
        """y (f32 [rows]) for x (f32 [cols]); with a threshold, of the inputs |x_i| > threshold alone (never of NaN).

        Raises ValueError for another number of inputs.
        """
        if x.shape != (self.cols,):
            raise ValueError(f"a [{self.rows}, {self.cols}] matrix takes [{self.cols}] inputs, not {list(x.shape)}")
        host_view(self._x).reshape(-1)[: self.cols] = x
        self.run(threshold)
        return host_view(self._y).reshape(-1)[: self.rows].copy()

    def run(self, threshold: float | None = None) -> None:
        """Launch on the x that is already on the device and wait for the end."""
        kernel = make_row_gemv_kernel(self.workers, threshold is not None, self.exact, self.decoder)
        kernel(
            self._quants, self._headers, address(self._quants), address(self._headers), self.rows, self.superblocks,
            self._x, threshold or 0.0, self._scratch, self._y,
        )  # fmt: skip
        ti.sync()


def _upload(rows: np.ndarray, dtype) -> ti.Ndarray:
    array = ndarray(dtype, (len(rows),))
    host_view(array)[:] = rows
    return array
