"""Y = X W^T for many tokens with zigzag weights: a group has one band (256 rows) and 32 tokens.

Sixteen columns at a time are decoded to shared memory, and so are the tokens' inputs; a thread then has 4 rows and 8
tokens in registers, 12 shared values for 32 products.
"""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.kernels.shared.words import NIBBLE_UNIT, nibbles_in_place
from spqt_ti.kernels.simt.collect import is_active
from spqt_ti.kernels.simt.groups import array_of, log2
from spqt_ti.kernels.simt.transfer import upload, zeros
from spqt_ti.kernels.simt.zigzag import BAND, PARTS, ZigzagWords, row_of, split, step_and_minimum, words4

TOKENS = 32  # of a group
THREADS = 256
_COLUMNS = 16
_ROWS_EACH, _TOKENS_EACH = 4, 8
_THREADS_LOG2, _COLUMNS_LOG2 = log2(THREADS), log2(_COLUMNS)


def make_matmul(shape: ZigzagWords, tokens: int):
    """Build the ti.func of thread i of THREADS * bands * tokens / TOKENS, for up to `tokens` (a multiple of TOKENS).

    Arguments: i; quants and headers with the matrix's first entry in each; a; the place of X [tokens][cols] and Y
    [tokens][padded rows] in a; how many tokens there are; the place of inputs' weights in a, whether they have any, and
    a threshold: inputs that are not active count as zero (threshold below 0: none). Groups whose tokens are not there
    do nothing.
    """
    bands, cols, last_parts, padded_rows = shape.bands, shape.cols, shape.last_parts, shape.padded_rows
    token_tiles = tokens // TOKENS

    @ti.func
    def matmul(
        i, quants: ti.template(), quants_base, headers: ti.template(), headers_base, a: ti.template(), x, y, count,
        weights, weighted, threshold,
    ):  # fmt: skip
        w = ti.simt.block.SharedArray((_COLUMNS * BAND,), ti.f32)
        inputs = ti.simt.block.SharedArray((_COLUMNS * TOKENS,), ti.f32)
        t = i & (THREADS - 1)
        group = i >> _THREADS_LOG2
        band = group // token_tiles
        first_token = (group - band * token_tiles) * TOKENS
        if first_token < count:  # the same for all of the group
            # Sixteen threads decode a column: a thread has half of 128 bits.
            slot, part, first_word = t >> 4, (t & 15) >> 1, (t & 1) * 2
            stride = PARTS
            if band == bands - 1:
                stride = last_parts
            quants_at = quants_base + band * cols * PARTS + ti.min(part, stride - 1)
            headers_at = headers_base + band * cols
            sums = ti.Matrix([[0.0] * _TOKENS_EACH for _ in range(_ROWS_EACH)])
            for strip in range((cols + _COLUMNS - 1) // _COLUMNS):
                ti.simt.block.sync()
                if strip * _COLUMNS + slot < cols:
                    loaded = quants[quants_at + (strip * _COLUMNS + slot) * stride]
                    header = headers[headers_at + strip * _COLUMNS + slot]
                    words = ti.Vector(
                        [ti.select(first_word > 0, loaded[k + 2], loaded[k]) for k in ti.static(range(2))]
                    )
                    for high in ti.static(range(2)):
                        step, minimum = step_and_minimum(header, (part & -2) + high)
                        for k, byte in ti.static(ti.ndrange(2, 4)):
                            value = (
                                nibbles_in_place(words[k], byte, high) * NIBBLE_UNIT[2 * byte + high] * step - minimum
                            )
                            w[slot * BAND + row_of(4 * part + first_word + k, byte, high)] = value
                for piece in ti.static(range(_COLUMNS * TOKENS // THREADS)):
                    token = (t >> _COLUMNS_LOG2) + piece * (THREADS // _COLUMNS)
                    column = strip * _COLUMNS + (t & (_COLUMNS - 1))
                    value = 0.0
                    if column < cols and first_token + token < count:
                        at = x + (first_token + token) * cols + column
                        value = a[at]
                        if threshold >= 0.0 and not is_active(a, at, a, weights + column, weighted, threshold):
                            value = 0.0
                    inputs[(t & (_COLUMNS - 1)) * TOKENS + token] = value
                ti.simt.block.sync()
                for c in range(ti.min(_COLUMNS, cols - strip * _COLUMNS)):
                    ws = [w[c * BAND + (t & 63) + 64 * r] for r in ti.static(range(_ROWS_EACH))]
                    for k in ti.static(range(_TOKENS_EACH)):
                        xk = inputs[c * TOKENS + (t >> 6) * _TOKENS_EACH + k]
                        for r in ti.static(range(_ROWS_EACH)):
                            sums[r, k] += ws[r] * xk
            for k in ti.static(range(_TOKENS_EACH)):
                token = first_token + (t >> 6) * _TOKENS_EACH + k
                if token < count:
                    for r in ti.static(range(_ROWS_EACH)):
                        a[y + token * padded_rows + band * BAND + (t & 63) + 64 * r] = sums[r, k]

    return matmul


def matmul_threads(shape: ZigzagWords, tokens: int) -> int:
    """Threads of a product for up to `tokens`."""
    return shape.bands * (tokens // TOKENS) * THREADS


class ZigzagMatmul:
    """A matrix (u8 [nbytes]) with its product as a kernel of its own, for tests, for up to `tokens` tokens."""

    def __init__(self, data: np.ndarray, shape: ZigzagWords, tokens: int) -> None:
        self._shape = shape
        quants, headers = split(data, shape)
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


def make_matmul_kernel(shape: ZigzagWords, tokens: int):
    """Build the kernel of ZigzagMatmul; a: weights [cols], X [tokens][cols], Y [tokens][padded rows]."""
    matmul = make_matmul(shape, tokens)
    threads = matmul_threads(shape, tokens)

    @ti.kernel
    def multiply(
        quants: array_of(words4), headers: array_of(words4), a: array_of(ti.f32), count: ti.i32, weighted: ti.i32,
        threshold: ti.f32,
    ):  # fmt: skip
        ti.loop_config(block_dim=THREADS)
        for i in range(threads):
            matmul(
                i, quants, 0, headers, 0, a, shape.cols, shape.cols * (tokens + 1), count, 0, weighted, threshold
            )  # fmt: skip

    return multiply
