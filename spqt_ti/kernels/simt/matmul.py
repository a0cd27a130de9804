"""Y = X W^T for many tokens with zigzag weights: a group has one band (256 rows) and 32 tokens.

Sixteen columns at a time are decoded to shared memory, and so are the tokens' inputs; a thread then has 4 rows and 8
tokens in registers, 12 shared values for 32 products.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.collect import Inputs, masked
from spqt_ti.kernels.simt.groups import log2
from spqt_ti.kernels.simt.schemes.decoder import PARTS, Target, make_decode_half
from spqt_ti.kernels.simt.zigzag import BAND, ZigzagWords

TOKENS = 32  # of a group
THREADS = 256
_COLUMNS = 16
_ROWS_EACH, _TOKENS_EACH = 4, 8
_THREADS_LOG2, _COLUMNS_LOG2 = log2(THREADS), log2(_COLUMNS)


def make_zigzag_matmul(shape: ZigzagWords, tokens: int):
    """Build the ti.func of thread i of `zigzag_matmul_threads(...)`, for up to `tokens` (a multiple of TOKENS).

    Arguments: i; the matrix; a; the offset of X [tokens][cols] and Y [tokens][padded rows] in a; how many tokens there
    are; the rule by which inputs that are not active count as zero (threshold below 0: none). Groups whose tokens are
    not there do nothing.
    """
    bands, cols, pieces, padded_rows = shape.bands, shape.cols, shape.pieces, shape.padded_rows
    decoder, last_parts = shape.decoder, shape.last_parts
    loads, half_stride, entry, load_header = decoder.loads, decoder.half_stride, decoder.entry, decoder.load_header
    first_value, decode_half = decoder.first_value, make_decode_half(decoder)
    whole_entries, last_entries = decoder.entries(PARTS), decoder.entries(last_parts)
    token_tiles = tokens // TOKENS

    @ti.func
    def matmul(i, matrix: ti.template(), a: ti.template(), x, y, count, rule: ti.template()):
        w = ti.simt.block.SharedArray((_COLUMNS * BAND,), ti.f32)
        inputs = ti.simt.block.SharedArray((_COLUMNS * TOKENS,), ti.f32)
        t = i & (THREADS - 1)
        group = i >> _THREADS_LOG2
        band = group // token_tiles
        first_token = (group - band * token_tiles) * TOKENS
        if first_token < count:  # the same for all of the group
            # Sixteen threads decode a column: a thread has half of a lane's values.
            slot, part, first_word = t >> 4, (t & 15) >> 1, (t & 1) * 2
            parts, stride = 0 + PARTS, 0 + whole_entries
            if band == bands - 1:
                parts, stride = last_parts, last_entries
            quants_at = matrix.quants_at + band * cols * whole_entries
            first = slot * BAND + first_value(part)
            sums = ti.Matrix([[0.0] * _TOKENS_EACH for _ in range(_ROWS_EACH)])
            for strip in range((cols + _COLUMNS - 1) // _COLUMNS):
                ti.simt.block.sync()
                if strip * _COLUMNS + slot < cols:
                    column = strip * _COLUMNS + slot
                    loaded = ti.Matrix.zero(ti.u32, loads, 4)
                    for load in ti.static(range(loads)):
                        loaded[load, :] = matrix.quants[quants_at + entry(part, parts, load) + column * stride]
                    header = load_header(matrix.headers, matrix.headers_at, band * cols + column, pieces)
                    decode_half(loaded, header, part, first_word, w, ti.static(Target(first, 1, half_stride)))
                for turn in ti.static(range(_COLUMNS * TOKENS // THREADS)):
                    token = (t >> _COLUMNS_LOG2) + turn * (THREADS // _COLUMNS)
                    column = strip * _COLUMNS + (t & (_COLUMNS - 1))
                    value = 0.0
                    if column < cols and first_token + token < count:
                        at = x + (first_token + token) * cols
                        value = masked(ti.static(Inputs(a, at)), column, rule)
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


def zigzag_matmul_threads(shape: ZigzagWords, tokens: int) -> int:
    """Threads of a product for up to `tokens`."""
    return shape.bands * (tokens // TOKENS) * THREADS
