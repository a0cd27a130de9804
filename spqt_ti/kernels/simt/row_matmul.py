"""Y = X W^T for many tokens with weights in the row layout: a group has 128 rows and 32 tokens.

What a lane reads of a row, 32 columns, is decoded to shared memory for all rows at once, and so are the tokens' inputs;
a thread then has 4 rows and 4 tokens in registers.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.collect import Inputs, masked
from spqt_ti.kernels.simt.groups import log2
from spqt_ti.kernels.simt.matmul import THREADS, TOKENS
from spqt_ti.kernels.simt.row_words import RowWords
from spqt_ti.kernels.simt.schemes.decoder import HALF, PARTS, PIECE, Target, make_decode_half

_ROWS = 128  # of a group
_COLUMNS = 2 * HALF  # of a part
_ROWS_EACH, _TOKENS_EACH = 4, 4
_THREADS_LOG2, _PARTS_LOG2, _HALF_LOG2, _COLUMNS_LOG2 = log2(THREADS), log2(PARTS), log2(HALF), log2(_COLUMNS)


def make_row_matmul(shape: RowWords, tokens: int):
    """Build the ti.func of thread i of `row_matmul_threads(...)`; arguments as of `make_zigzag_matmul`."""
    rows, cols, pieces, padded_rows, per_row = shape.rows, shape.cols, shape.pieces, shape.padded_rows, shape.per_row
    decoder = shape.decoder
    loads, half_stride, entry, load_header = decoder.loads, decoder.half_stride, decoder.entry, decoder.load_header
    first_value, decode_half, entries = decoder.first_value, make_decode_half(decoder), decoder.entries(PARTS)
    token_tiles = tokens // TOKENS

    @ti.func
    def matmul(i, matrix: ti.template(), a: ti.template(), x, y, count, rule: ti.template()):
        w = ti.simt.block.SharedArray((_COLUMNS * _ROWS,), ti.f32)  # [columns][rows]
        inputs = ti.simt.block.SharedArray((_COLUMNS * TOKENS,), ti.f32)
        t = i & (THREADS - 1)
        group = i >> _THREADS_LOG2
        tile = group // token_tiles
        first_token = (group - tile * token_tiles) * TOKENS
        if first_token < count:  # the same for all of the group
            # Two threads decode a lane's values of a row, half of them each.
            row, first_word = t >> 1, (t & 1) * 2
            first_piece = ti.min(tile * _ROWS + row, rows - 1) * per_row
            sums = ti.Matrix([[0.0] * _TOKENS_EACH for _ in range(_ROWS_EACH)])
            for strip in range(per_row * PARTS):
                piece, part = first_piece + (strip >> _PARTS_LOG2), strip & (PARTS - 1)
                first_column = (strip >> _PARTS_LOG2) * PIECE + first_value(part)
                ti.simt.block.sync()
                loaded = ti.Matrix.zero(ti.u32, loads, 4)
                for load in ti.static(range(loads)):
                    loaded[load, :] = matrix.quants[matrix.quants_at + piece * entries + entry(part, PARTS, load)]
                header = load_header(matrix.headers, matrix.headers_at, piece, pieces)
                decode_half(loaded, header, part, first_word, w, ti.static(Target(row, _ROWS, HALF)))
                for turn in ti.static(range(_COLUMNS * TOKENS // THREADS)):
                    token = (t >> _COLUMNS_LOG2) + turn * (THREADS // _COLUMNS)
                    c = t & (_COLUMNS - 1)
                    column = first_column + (c >> _HALF_LOG2) * half_stride + (c & (HALF - 1))
                    value = 0.0
                    if column < cols and first_token + token < count:
                        at = x + (first_token + token) * cols
                        value = masked(ti.static(Inputs(a, at)), column, rule)
                    inputs[c * TOKENS + token] = value
                ti.simt.block.sync()
                for c in range(_COLUMNS):
                    ws = [w[c * _ROWS + (t & 31) + 32 * r] for r in ti.static(range(_ROWS_EACH))]
                    for k in ti.static(range(_TOKENS_EACH)):
                        xk = inputs[c * TOKENS + (t >> 5) * _TOKENS_EACH + k]
                        for r in ti.static(range(_ROWS_EACH)):
                            sums[r, k] += ws[r] * xk
            for k in ti.static(range(_TOKENS_EACH)):
                token = first_token + (t >> 5) * _TOKENS_EACH + k
                if token < count:
                    for r in ti.static(range(_ROWS_EACH)):
                        target = tile * _ROWS + (t & 31) + 32 * r
                        if target < rows:
                            a[y + token * padded_rows + target] = sums[r, k]

    return matmul


def row_matmul_threads(shape: RowWords, tokens: int) -> int:
    """Threads of a product for up to `tokens`."""
    return -(-shape.rows // _ROWS) * (tokens // TOKENS) * THREADS
