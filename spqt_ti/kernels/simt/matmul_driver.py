"""The product for many tokens as a kernel of its own, for tests."""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.collect import Rule
from spqt_ti.kernels.simt.groups import array_of
from spqt_ti.kernels.simt.matmul import THREADS
from spqt_ti.kernels.simt.products import Words, make_matmul, matmul_threads
from spqt_ti.kernels.simt.schemes.decoder import Matrix, words4
from spqt_ti.kernels.simt.transfer import upload, zeros


class Matmul:
    """A matrix (u8 [nbytes]) with its product for up to `tokens` tokens (a multiple of 32)."""

    def __init__(self, data: np.ndarray, shape: Words, tokens: int) -> None:
        self._shape = shape
        quants, headers = shape.unpack(data)
        self._quants, self._headers = upload(quants), upload(headers)
        self._y = shape.cols + tokens * shape.cols
        self._a = zeros(ti.f32, self._y + tokens * shape.padded_rows)
        self._kernel = make_matmul_kernel(shape, tokens)

    def __call__(self, x: np.ndarray, threshold: float = -1.0, weights: np.ndarray | None = None) -> np.ndarray:
        """Y (f32 [tokens, rows]) of X (f32 [tokens, cols]), masked by a threshold and the inputs' weights [cols]."""
        count, shape = len(x), self._shape
        values = np.zeros(self._a.shape[0], np.float32)
        if weights is not None:
            values[: shape.cols] = weights
        values[shape.cols : shape.cols + x.size] = x.reshape(-1)
        self._a.from_numpy(values)
        self._kernel(self._quants, self._headers, self._a, count, int(weights is not None), threshold)
        y = self._a.to_numpy()[self._y :][: count * shape.padded_rows]
        return y.reshape(count, -1)[:, : shape.rows]


def make_matmul_kernel(shape: Words, tokens: int):
    """Build the kernel of Matmul; a: weights [cols], X [tokens][cols], Y [tokens][padded rows]."""
    matmul = make_matmul(shape, tokens)
    threads = matmul_threads(shape, tokens)

    @ti.kernel
    def multiply(
        quants: array_of(words4), headers: array_of(words4), a: array_of(ti.f32), count: ti.i32, weighted: ti.i32,
        threshold: ti.f32,
    ):  # fmt: skip
        ti.loop_config(block_dim=THREADS)
        for i in range(threads):
            matrix = ti.static(Matrix(quants, 0, headers, 0))
            rule = ti.static(Rule(threshold, a, 0, weighted))
            matmul(i, matrix, a, shape.cols, shape.cols * (tokens + 1), count, rule)

    return multiply
