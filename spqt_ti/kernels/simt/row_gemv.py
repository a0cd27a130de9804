"""GEMV on the row layout (ggml's Q4_K rows) on GPUs, the baseline of the zigzag kernels: y = W x, for one token.

A simdgroup of 32 lanes has a row, four superblocks at a time: a lane reads 128 bits of one. The lanes' sums are added
through shared memory, as a tree. With `skips`, inputs |x| <= threshold count as zero and their multiplications are
left out: naive sparsity on the row layout (B1 of the paper), which reads every weight in any case.
"""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats import layout, q4_k
from spqt_ti.kernels.shared.words import NIBBLE_UNIT, nibbles_in_place
from spqt_ti.kernels.simt.groups import array_of, log2, round_up
from spqt_ti.kernels.simt.submission import Launch, Submission
from spqt_ti.kernels.simt.transfer import upload, zeros
from spqt_ti.kernels.simt.zigzag import BAND, LANES, PARTS, SLOTS, row_of, step_and_minimum, words4

_ROWS = 4  # of a group
_THREADS = _ROWS * LANES


def make_row_gemv_kernel(rows: int, cols: int, skips: bool):
    """Build the kernel (quants, headers, x, y, copy, threshold) for a matrix [rows, cols].

    quants u32 [copies * rows * blocks * 8, 4], headers u32 [copies * rows * blocks, 4], blocks = ceil(cols / 256);
    x f32 [blocks * 256], zero-padded; y f32 [rows, rounded up to 4].
    """
    blocks = -(-cols // BAND)
    groups = -(-rows // _ROWS)
    threads_log2, levels = log2(_THREADS), log2(LANES)

    @ti.kernel
    def multiply(
        quants: array_of(words4), headers: array_of(words4), x: array_of(ti.f32), y: array_of(ti.f32), copy: ti.i32,
        threshold: ti.f32,
    ):  # fmt: skip
        ti.loop_config(block_dim=_THREADS)
        for i in range(groups * _THREADS):
            shared = ti.simt.block.SharedArray((_THREADS,), ti.f32)
            t = i & (_THREADS - 1)
            lane = t & (LANES - 1)
            row = (i >> threads_log2) * _ROWS + (t >> 5)
            stored = ti.min(row, rows - 1)
            part, total = t & (PARTS - 1), 0.0
            block = lane >> 3
            while block < blocks:
                at = (copy * rows + stored) * blocks + block
                words, header = quants[at * PARTS + part], headers[at]
                for high in ti.static(range(2)):
                    step, minimum = step_and_minimum(header, (part & -2) + high)
                    for word, byte in ti.static(ti.ndrange(4, 4)):
                        value = x[block * BAND + row_of(4 * part + word, byte, high)]
                        if ti.static(skips):
                            if ti.max(value, 0.0 - value) > threshold:
                                weight = nibbles_in_place(words[word], byte, high) * NIBBLE_UNIT[2 * byte + high]
                                total += (step * weight - minimum) * value
                        else:
                            weight = nibbles_in_place(words[word], byte, high) * NIBBLE_UNIT[2 * byte + high]
                            total += (step * weight - minimum) * value
                block += SLOTS
            ti.simt.block.sync()
            shared[t] = total
            for level in ti.static(range(1, levels + 1)):
                ti.simt.block.sync()
                if lane < (LANES >> level):
                    shared[t] = shared[t] + shared[t + (LANES >> level)]
            if lane == 0:
                y[row] = shared[t]

    return multiply


class RowGemv:
    """A row-layout matrix (u8 [nbytes], `copies` of it in memory) with its GEMV, for tests and benchmarks.

    Raises QuantizationError if the number of bytes is not that of the shape.
    """

    def __init__(self, data: np.ndarray, rows: int, cols: int, skips: bool = False, copies: int = 1) -> None:
        self._rows, self._cols = rows, cols
        stored = layout.superblocks(data, rows, cols, "row", q4_k.SCHEME)
        quants, headers = (np.ascontiguousarray(part).view("<u4") for part in (stored[:, 16:], stored[:, :16]))
        quants = quants.reshape(-1, 4)
        self.arrays = {
            "quants": upload(np.tile(quants, (copies, 1))),
            "headers": upload(np.tile(headers, (copies, 1))),
            "x": zeros(ti.f32, round_up(cols, BAND)),
            "y": zeros(ti.f32, round_up(rows, _ROWS)),
        }
        self._kernel = make_row_gemv_kernel(rows, cols, skips)

    def __call__(self, x: np.ndarray, threshold: float = 0.0) -> np.ndarray:
        """y (f32 [rows]) of x (f32 [cols]); with `skips`, of the inputs |x| > threshold."""
        self.load(x)
        Submission([self.launch(threshold=threshold)], self.arrays, graph=False).submit()
        return self.arrays["y"].to_numpy()[: self._rows]

    def load(self, x: np.ndarray) -> None:
        """Bring x to the device. Raises ValueError for another size."""
        if x.shape != (self._cols,):
            raise ValueError(f"x of shape {x.shape} does not fit {self._cols} columns")
        self.arrays["x"].from_numpy(np.pad(x, (0, self.arrays["x"].shape[0] - x.size)))

    def launch(self, copy: int = 0, threshold: float = 0.0) -> Launch:
        """The product with the x that was loaded."""
        return Launch(self._kernel, tuple(self.arrays), (copy, threshold))
