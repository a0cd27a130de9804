"""GEMV on the row layout (ggml's Q4_K rows), the baseline of the zigzag kernels: y = W x, for one token.

A superblock holds 256 inputs of one output. Word i of its quants (32 words) holds columns 64 (i / 8) + 4 (i % 8) + b
in the low nibble of byte b, and the column 32 further in the high one. A nibble is masked where it lies and never
shifted: the power of two of its place is in x, which every worker brings into the order of the lanes once per call and
then uses for all its rows. With q the nibbles,

    y_row = sum_j d scale_j (q . x)_j - dmin min_j (sum x)_j        over the sub-blocks j of 32 columns.

Rows are split over the workers and each is summed by one of them, so y does not depend on their number. One row at a
time: up to 4096 columns, 2 to 8 side by side, which share the loads of x, were 15 to 40 % slower. Only beyond, where x
leaves the first-level cache, is that faster (14336 columns: 20 %); walking in tiles of columns never is.
"""

import functools

import numpy as np

from spqt_ti.backend import host_view, ndarray, ti
from spqt_ti.formats import layout, q4_k
from spqt_ti.kernels.cpu.multiply_add import make_multiply_add
from spqt_ti.kernels.cpu.vectors import array_of, f32x8, f32x16, lane_max, lane_sum, u32x4, u32x16
from spqt_ti.kernels.cpu.workers import share_start
from spqt_ti.kernels.cpu.zigzag import minima_of, scales_of
from spqt_ti.kernels.shared.words import NIBBLE_UNIT, nibbles_in_place

X_VECTORS = 16  # of x per superblock, two of quants


def split(data: np.ndarray, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """Stored bytes (u8 [nbytes]) -> quants u32 [rows * blocks * 2, 16] and headers u32 [rows * blocks, 4].

    A row has ceil(cols / 256) blocks. Raises QuantizationError where `data` has another size.
    """
    blocks = layout.superblocks(data, rows, cols, "row", q4_k.SCHEME)
    headers = np.ascontiguousarray(blocks[:, :16]).view("<u4")
    return np.ascontiguousarray(blocks[:, 16:]).view("<u4").reshape(-1, 16), headers


@ti.func
def columns_of(a: ti.template(), base, v: ti.template(), high: ti.template(), byte: ti.template()):
    """The columns of a superblock (16 vectors of x at `base`) that are nibble `high` of byte `byte` in vector `v`."""
    start = base + 8 * v + 2 * high
    parts = [a[start], a[start + 1], a[start + 4], a[start + 5]]
    return f32x16(*[parts[i // 4][4 * (i % 4) + byte] for i in ti.static(range(16))])


@ti.func
def zero_up_to(v, threshold):
    """v with the lanes |v| <= threshold, and NaN, set to zero."""
    return ti.select(ti.max(v, 0.0 - v) > threshold, v, f32x16(0.0))


@ti.func
def sum8(v, first: ti.template()):
    """Sum of lanes first .. first + 7, as a tree."""
    s = [v[first + i] + v[first + i + 4] for i in ti.static(range(4))]
    return (s[0] + s[2]) + (s[1] + s[3])


def make_row_gemv(workers: int, skips: bool):
    """Build the ti.func that computes one worker's rows of y = W x. Shapes are run-time arguments.

    With `skips`, inputs |x| <= threshold count as zero, and the weights of 16 inputs are left out where all of them
    are zero: naive sparsity on the row layout (B1 of the paper). Those 16 share a vector of quants; the quants are read
    in any case.

    Arguments: quants, headers and the first superblock of the matrix in them; rows and superblocks per row; x (f32x16,
    16 per superblock, zero-padded); the threshold; scratch of the workers, `blocks` entries for each: ordered x (16
    vectors per block), its sums per sub-block (f32x8), flags (bit 8 v + 4 high + byte); y (f32 [rows]).
    """
    multiply_add16, multiply_add8 = make_multiply_add()

    @ti.func
    def order_x(
        x: ti.template(), blocks, threshold, ordered: ti.template(), sums: ti.template(), flags: ti.template(), first,
    ):  # fmt: skip
        """Bring x into the lanes' order: vector 8 v + 4 high + byte goes with those nibbles of quants vector v."""
        for block in range(blocks):
            flag = 0
            halves = [0.0 for _ in ti.static(range(8))]
            for v in ti.static(range(2)):
                for high in ti.static(range(2)):
                    total = f32x16(0.0)
                    for byte in ti.static(range(4)):
                        lanes = columns_of(x, block * X_VECTORS, v, high, byte)
                        if ti.static(skips):
                            lanes = zero_up_to(lanes, threshold)
                            if lane_max(ti.max(lanes, 0.0 - lanes)) > 0.0:
                                flag |= 1 << (8 * v + 4 * high + byte)
                        total += lanes
                        place = (first + block) * X_VECTORS + 8 * v + 4 * high + byte
                        ordered[place] = lanes * NIBBLE_UNIT[2 * byte + high]
                    halves[4 * v + high] = sum8(total, 0)
                    halves[4 * v + high + 2] = sum8(total, 8)
            sums[first + block] = f32x8(*halves)
            flags[first + block] = flag

    @ti.func
    def row_sum(
        quants: ti.template(), headers: ti.template(), start, blocks,
        ordered: ti.template(), sums: ti.template(), flags: ti.template(), first,
    ):  # fmt: skip
        """The product of the row whose superblocks begin at `start` with the ordered x that begins at block `first`."""
        total = f32x16(0.0)
        offsets = f32x8(0.0)
        for block in range(blocks):
            header = headers[start + block]
            scales = scales_of(header)
            multiply_add8(offsets, minima_of(header), sums[first + block])
            for v in ti.static(range(2)):
                words = quants[2 * (start + block) + v]
                for high in ti.static(range(2)):
                    dot = f32x16(0.0)
                    for byte in ti.static(range(4)):
                        number = 8 * v + 4 * high + byte
                        if ti.static(skips):
                            if flags[first + block] & (1 << number):
                                lanes = ordered[(first + block) * X_VECTORS + number]
                                multiply_add16(dot, nibbles_in_place(words, byte, high), lanes)
                        else:
                            lanes = ordered[(first + block) * X_VECTORS + number]
                            multiply_add16(dot, nibbles_in_place(words, byte, high), lanes)
                    scale = f32x16(*[scales[4 * v + high + 2 * (i // 8)] for i in ti.static(range(16))])
                    multiply_add16(total, dot, scale)
        return lane_sum(total) - sum8(offsets, 0)

    @ti.func
    def row_gemv(
        quants: ti.template(), headers: ti.template(), superblock, rows, blocks, x: ti.template(), threshold,
        ordered: ti.template(), sums: ti.template(), flags: ti.template(), y: ti.template(), worker,
    ):  # fmt: skip
        first = worker * blocks
        order_x(x, blocks, threshold, ordered, sums, flags, first)
        for row in range(share_start(rows, worker, workers), share_start(rows, worker + 1, workers)):
            y[row] = row_sum(quants, headers, superblock + row * blocks, blocks, ordered, sums, flags, first)

    return row_gemv


@functools.cache
def make_row_gemv_kernel(workers: int, skips: bool):
    """The GEMV as a kernel of its own, one iteration per worker; compiled once for all shapes."""
    row_gemv = make_row_gemv(workers, skips)

    @ti.kernel
    def kernel(
        quants: array_of(u32x16), headers: array_of(u32x4), rows: ti.i32, blocks: ti.i32,
        x: array_of(f32x16), threshold: ti.f32,
        ordered: array_of(f32x16), sums: array_of(f32x8), flags: array_of(ti.i32), y: array_of(ti.f32),
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            row_gemv(quants, headers, 0, rows, blocks, x, threshold, ordered, sums, flags, y, worker)

    return kernel


class RowGemv:
    """One matrix [rows, cols] on the device, with its GEMV; for tests and benchmarks.

    `data`: the stored row-layout bytes (u8 [nbytes]). Raises QuantizationError where their number is not the shape's.
    """

    def __init__(self, data: np.ndarray, rows: int, cols: int, workers: int = 2) -> None:
        self.rows, self.cols, self.workers = rows, cols, workers
        self.blocks = -(-cols // q4_k.VALUES)
        quants, headers = split(data, rows, cols)
        self._quants = _upload(quants, u32x16)
        self._headers = _upload(headers, u32x4)
        self._x = _upload(np.zeros((self.blocks * X_VECTORS, 16), np.float32), f32x16)
        self._ordered = ndarray(f32x16, (workers * self.blocks * X_VECTORS,))
        self._sums = ndarray(f32x8, (workers * self.blocks,))
        self._flags = ndarray(ti.i32, (workers * self.blocks,))
        self._y = ndarray(ti.f32, (rows,))

    def __call__(self, x: np.ndarray, threshold: float | None = None) -> np.ndarray:
        """y (f32 [rows]) for x (f32 [cols]); with a threshold, of the inputs |x_i| > threshold alone (never of NaN).

        Raises ValueError for another number of inputs.
        """
        if x.shape != (self.cols,):
            raise ValueError(f"a [{self.rows}, {self.cols}] matrix takes [{self.cols}] inputs, not {list(x.shape)}")
        host_view(self._x).reshape(-1)[: self.cols] = x
        self.run(threshold)
        return host_view(self._y)[: self.rows].copy()

    def run(self, threshold: float | None = None) -> None:
        """Launch on the x that is already on the device and wait for the end."""
        kernel = make_row_gemv_kernel(self.workers, threshold is not None)
        kernel(
            self._quants, self._headers, self.rows, self.blocks, self._x, threshold or 0.0,
            self._ordered, self._sums, self._flags, self._y,
        )  # fmt: skip
        ti.sync()


def _upload(rows: np.ndarray, dtype) -> ti.Ndarray:
    array = ndarray(dtype, (len(rows),))
    host_view(array)[:] = rows
    return array
