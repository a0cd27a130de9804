"""GEMV on the row layout (ggml's rows) on GPUs: y = W x, for one token.

A simdgroup of 32 lanes has a row, four pieces of 256 columns at a time: eight lanes have one. A group brings the inputs
of four pieces to shared memory: a lane's are 32 columns from its neighbour's, and from the cache each of them would be
a line of its own (138 GB/s on an H200). The lanes' sums are added through shared memory, as a tree. Every weight is
read. With `skips`, inputs that are not active count as zero: naive sparsity on the row layout (B1 of the paper).
"""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.collect import Inputs, Rule, satisfies
from spqt_ti.kernels.simt.division import LANES
from spqt_ti.kernels.simt.groups import SHARED, array_of, log2
from spqt_ti.kernels.simt.row_words import ROWS, RowWords
from spqt_ti.kernels.simt.schemes.decoder import ONE, PARTS, PIECE, Matrix, words4
from spqt_ti.kernels.simt.submission import Launch, Submission
from spqt_ti.kernels.simt.transfer import upload, zeros

THREADS = ROWS * LANES  # of a group
_SLOTS = LANES // PARTS
_STRETCH = _SLOTS * PIECE  # columns, whose inputs SHARED holds


def row_gemv_threads(shape: RowWords) -> int:
    """Threads of a GEMV."""
    return shape.padded_rows // ROWS * THREADS


@ti.func
def simdgroup_sum(shared: ti.template(), t, value):
    """Sum of `value` over a simdgroup, as a tree, for each of its lanes. Every thread of a group calls it; `shared`:
    f32 [threads].
    """
    lane = t & (LANES - 1)
    ti.simt.block.sync()
    shared[t] = value
    for level in ti.static(range(1, LANES.bit_length())):
        ti.simt.block.sync()
        if lane < (LANES >> level):
            shared[t] = shared[t] + shared[t + (LANES >> level)]
    ti.simt.block.sync()
    return shared[t - lane]


def make_row_dot(shape: RowWords, skips: bool):
    """Build the ti.func (matrix, row, wanted, inputs, rule, shared, t) of thread t of a group of THREADS: a lane's part
    of its simdgroup's row times the inputs; a simdgroup's lanes have all of it. 0, and no weight is read, where the row
    is not `wanted` (the same for a simdgroup). Every thread of a group calls it. `shared`: f32 [SHARED], for inputs.

    With `skips`, inputs that do not satisfy the rule count as zero; a threshold below 0: all do.
    """
    cols, pieces, per_row = shape.cols, shape.pieces, shape.per_row
    decoder = shape.decoder
    loads, has_minimum, units, half_stride = decoder.loads, decoder.has_minimum, decoder.units, decoder.half_stride
    entry, load_header, step_and_minimum = decoder.entry, decoder.load_header, decoder.step_and_minimum
    bias, header_words = decoder.bias, decoder.header_words
    packed, quant, first_value, entries = decoder.packed, decoder.quant, decoder.first_value, decoder.entries(PARTS)

    @ti.func
    def place(column):
        """Of a stretch's input in shared memory: turned about, so that the lanes' inputs, 32 columns from one another,
        are in different banks.
        """
        return column ^ (column >> 5)

    @ti.func
    def put_inputs(inputs: ti.template(), rule: ti.template(), first, shared: ti.template(), t):
        """A stretch of the inputs from column `first` on, 0 beyond the last, to shared memory."""
        ti.simt.block.sync()
        for turn in ti.static(range(_STRETCH // THREADS)):
            column, value = first + turn * THREADS + t, 0.0
            if column < cols:
                value = inputs.values[inputs.at + column]
                if ti.static(skips):  # noqa: SIM102
                    if rule.threshold >= 0.0 and not satisfies(inputs, column, rule, column):
                        value = 0.0
            shared[place(turn * THREADS + t)] = value
        ti.simt.block.sync()

    @ti.func
    def row_dot(
        matrix: ti.template(), row, wanted, inputs: ti.template(), rule: ti.template(), shared: ti.template(), t
    ):  # fmt: skip
        lane = t & (LANES - 1)
        part, slot, total = lane & (PARTS - 1), lane >> 3, 0.0
        at = slot * PIECE + first_value(part)
        for stretch in range(-(-per_row // _SLOTS)):
            piece = stretch * _SLOTS + slot
            reads = wanted and piece < per_row
            words, header = ti.Matrix.zero(ti.u32, loads, 4), ti.Vector.zero(ti.u32, header_words)
            if reads:  # before the barriers, so that the weights come meanwhile
                stored = row * per_row + piece
                for load in ti.static(range(loads)):
                    words[load, :] = matrix.quants[matrix.quants_at + stored * entries + entry(part, PARTS, load)]
                header = load_header(matrix.headers, matrix.headers_at, stored, pieces)
            put_inputs(inputs, rule, stretch * _STRETCH, shared, t)
            if reads:
                for half in ti.static(range(2)):
                    step, minimum = step_and_minimum(header, part, half)
                    quants = packed(words, 0, part, half)
                    levels_of = [quant(quants, byte, half, ONE) for byte in ti.static(range(4))]
                    for word, byte in ti.static(ti.ndrange(4, 4)):
                        weight = step * ((levels_of[byte][word] - bias) * units[2 * byte + half])
                        if ti.static(has_minimum):
                            weight -= minimum
                        total += weight * shared[place(at + (4 * word + byte + half_stride * half))]
        return total

    return row_dot


def make_row_gemv(shape: RowWords, skips: bool):
    """Build the ti.func of thread i of `row_gemv_threads(...)`, in groups of THREADS.

    Arguments: i; the matrix; the inputs x; an array and the offset of y [padded rows] in it; the rule by which inputs
    are active. A threshold below 0: all are; without `skips` it is not looked at.
    """
    row_dot, last_row, threads_log2 = make_row_dot(shape, skips), shape.rows - 1, log2(THREADS)

    @ti.func
    def row_gemv(i, matrix: ti.template(), inputs: ti.template(), y: ti.template(), y_at, rule: ti.template()):
        shared = ti.simt.block.SharedArray((SHARED,), ti.f32)  # _STRETCH, then THREADS
        t = i & (THREADS - 1)
        row = (i >> threads_log2) * ROWS + (t >> 5)
        part = row_dot(matrix, ti.min(row, last_row), 1, inputs, rule, shared, t)
        total = simdgroup_sum(shared, t, part)
        if t & (LANES - 1) == 0:
            y[y_at + row] = total

    return row_gemv


def make_row_gemv_kernel(shape: RowWords, skips: bool):
    """Build the kernel (quants, headers, x, y, copy, threshold), for tests and benchmarks, with the `copy`-th of the
    matrices in the arrays. x f32 [cols]; y f32 [padded rows].
    """
    row_gemv, threads = make_row_gemv(shape, skips), row_gemv_threads(shape)

    @ti.kernel
    def multiply(
        quants: array_of(words4), headers: array_of(words4), x: array_of(ti.f32), y: array_of(ti.f32), copy: ti.i32,
        threshold: ti.f32,
    ):  # fmt: skip
        ti.loop_config(block_dim=THREADS)
        for i in range(threads):
            quants_at, headers_at = copy * shape.quants, copy * shape.headers
            matrix = ti.static(Matrix(quants, quants_at, headers, headers_at))
            row_gemv(i, matrix, ti.static(Inputs(x, 0)), y, 0, ti.static(Rule(threshold, x, 0, False)))

    return multiply


class RowGemv:
    """A row-layout matrix (u8 [nbytes], `copies` of it in memory) with its GEMV, for tests and benchmarks.

    `skips`: over the inputs above a threshold. Raises QuantizationError if the number of bytes is not that of the
    shape.
    """

    def __init__(self, data: np.ndarray, shape: RowWords, skips: bool = False, copies: int = 1) -> None:
        self._shape = shape
        quants, headers = shape.unpack(data)
        self.arrays = {
            "quants": upload(np.tile(quants, (copies, 1))),
            "headers": upload(np.tile(headers, (copies, 1))),
            "x": zeros(ti.f32, shape.cols),
            "y": zeros(ti.f32, shape.padded_rows),
        }
        self._kernel = make_row_gemv_kernel(shape, skips)

    def __call__(self, x: np.ndarray, threshold: float = 0.0) -> np.ndarray:
        """y (f32 [rows]) of x (f32 [cols]); with `skips`, of the inputs |x| > threshold."""
        self.load(x)
        Submission([self.launch(threshold=threshold)], self.arrays, graph=False).submit()
        return self.arrays["y"].to_numpy()[: self._shape.rows]

    def load(self, x: np.ndarray) -> None:
        """Bring x to the device. Raises ValueError for another size."""
        if x.shape != (self._shape.cols,):
            raise ValueError(f"x of shape {x.shape} does not fit {self._shape.cols} columns")
        self.arrays["x"].from_numpy(x)

    def launch(self, copy: int = 0, threshold: float = 0.0) -> Launch:
        """The product with the x that was loaded."""
        return Launch(self._kernel, tuple(self.arrays), (copy, threshold))
