"""Dense matrix product for prefill: Y [tokens, rows] = X [tokens, cols] W^T, W in the zigzag or the vocabulary's
layout.

The unit of work is a strip of 64 rows: 256 columns of it at a time are turned into f32 once and then used for every
token, four tokens and four vectors (64 rows) in registers. A strip belongs to one worker, so the result does not
depend on their number.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.multiply_add import make_multiply_add
from spqt_ti.kernels.cpu.schemes import q4_k, q4_k_chunk_16_bits
from spqt_ti.kernels.cpu.schemes.decoder import Decoder
from spqt_ti.kernels.cpu.schemes.q4_k_tail import make_decode_tail
from spqt_ti.kernels.cpu.tile_sums import uses_integers
from spqt_ti.kernels.cpu.tokens import TOKENS, place_of, write_in_order
from spqt_ti.kernels.cpu.vectors import f32x16, value
from spqt_ti.kernels.cpu.workers import share_start
from spqt_ti.kernels.cpu.zigzag import panel_height, panel_start

TILE_COLUMNS = 256
TILE_VECTORS = 4 * TILE_COLUMNS  # of a worker's tile of decoded weights


def make_strip_product():
    """Build the ti.func that multiplies a decoded tile by every token.

    Sums run over the tiles of a strip: they are kept in Y (in lane order) between tiles.
    """
    multiply_add, _ = make_multiply_add()

    @ti.func
    def strip_product(a: ti.template(), tile, start, columns, tokens: ti.template(), out, step):
        """Add the columns start.. of this tile; vector k of a token's sums goes to a[out + token * y_stride +
        place_of(k, step)].
        """
        for batch in range((tokens.count + TOKENS - 1) // TOKENS):
            sums = [f32x16(0.0) for _ in ti.static(range(4 * TOKENS))]
            at = out + batch * TOKENS * tokens.y_stride
            if start > 0:
                for t in ti.static(range(TOKENS)):
                    for k in ti.static(range(4)):
                        sums[4 * t + k] = a[at + t * tokens.y_stride + place_of(k, step)]
            source = (tokens.x + batch * TOKENS * tokens.x_stride) * 16 + start
            for j in range(columns):
                weights = [a[tile + 4 * j + k] for k in ti.static(range(4))]
                for t in ti.static(range(TOKENS)):
                    xj = f32x16(value(a, source + t * tokens.x_stride * 16 + j))
                    for k in ti.static(range(4)):
                        multiply_add(sums[4 * t + k], weights[k], xj)
            for t in ti.static(range(TOKENS)):
                for k in ti.static(range(4)):
                    a[at + t * tokens.y_stride + place_of(k, step)] = sums[4 * t + k]

    return strip_product


@ti.func
def put_in_order(a: ti.template(), out, tokens: ti.template(), step):
    """Turn a finished strip from lane order (lane i of vector b is row 4i + b) into row order, for every token."""
    for token in range(tokens.count):
        at = out + token * tokens.y_stride
        sums = [a[at + place_of(b, step)] for b in ti.static(range(4))]
        write_in_order(a, at, step, sums)


def scratch_vectors(tokens: int, decoder: Decoder, exact: bool) -> int:
    """Vectors of scratch that a worker of `make_matmul` needs for up to so many tokens."""
    if _is_fast(decoder, exact):
        return max(TILE_VECTORS, q4_k_chunk_16_bits.scratch_vectors(tokens))
    return TILE_VECTORS


def _is_fast(decoder: Decoder, exact: bool) -> bool:
    return uses_integers(exact) and decoder.make_fast_matmul is not None


def make_matmul(
    workers: int, exact: bool = False, decoder: Decoder = q4_k.DECODER, skips_zeros: bool = False
):  # fmt: skip
    """Build the ti.func of one worker's strips of Y = X W^T for a zigzag matrix, whose geometry is a run-time argument.

    Arguments: a Matrix (no addresses needed); the array of X, Y and scratch; `tile`: the first of `scratch_vectors`
    vectors of the worker's own; Tokens, whose Y has whole bands (16 vectors each); the worker. `exact`: in f32 on every
    CPU; otherwise in the scheme's faster arithmetic, where it has one and the CPU the instructions. `skips_zeros`: that
    arithmetic leaves out inputs that are zero for four tokens; the bits are the same.
    """
    if uses_integers(exact) and decoder.make_fast_matmul is not None:
        return decoder.make_fast_matmul(workers, decoder.planes.tail, skips_zeros)
    strip_product, decode_strip = make_strip_product(), decoder.make_decode_strip()
    decode_tail = make_decode_tail() if decoder.planes.tail else None
    in_lanes, has_tail = decoder.lanes_of_four, decode_tail is not None

    @ti.func
    def matmul(m: ti.template(), a: ti.template(), tile, tokens: ti.template(), worker):
        strips = m.full_bands * 4 + m.tail_bands
        for strip in range(share_start(strips, worker, workers), share_start(strips, worker + 1, workers)):
            band = strip >> 2
            panel = panel_start(m.panel_bands, m.full_bands, band)
            height = panel_height(m.panel_bands, m.full_bands - panel)
            first = panel * m.cols + band - panel  # superblock of column 0
            out = tokens.y + m.full_bands * 16
            step = 2
            if band < m.full_bands:
                out = tokens.y + band * 16 + 4 * (strip & 3)
                if ti.static(in_lanes):
                    out = tokens.y + band * 16 + 8 * ((strip >> 1) & 1) + 2 * (strip & 1)
                    step = 4
            for i in range((m.cols + TILE_COLUMNS - 1) // TILE_COLUMNS):
                start = i * TILE_COLUMNS
                columns = ti.min(TILE_COLUMNS, m.cols - start)
                if ti.static(has_tail):
                    if band < m.full_bands:
                        decode_strip(m, first, height, a, tile, start, columns, strip & 3)
                    else:
                        decode_tail(m, a, tile, start, columns)  # type: ignore[misc]
                else:
                    decode_strip(m, first, height, a, tile, start, columns, strip & 3)
                strip_product(a, tile, start, columns, tokens, out, step)
            if ti.static(in_lanes):
                put_in_order(a, out, tokens, step)

    return matmul


def make_vocabulary_matmul(cols: int, workers: int):
    """Build the ti.func of one worker's tiles of Y = X W^T for the vocabulary matrix (see shared/vocabulary.py).

    Arguments: words and scales; the first tile and their number; then as for `make_matmul`.
    """
    strip_product = make_strip_product()
    chunks, blocks = -(-cols // TILE_COLUMNS), cols // 32

    @ti.func
    def decode(words: ti.template(), scales: ti.template(), strip, a: ti.template(), tile, start, columns):
        for j in range(columns):
            w = words[strip * cols + start + j]
            for b in ti.static(range(4)):
                q = ((w >> (8 * b)) & 255) * 1.0 - 128.0
                a[tile + 4 * j + b] = q * scales[(strip * blocks + ((start + j) >> 5)) * 4 + b]

    @ti.func
    def matmul(
        words: ti.template(), scales: ti.template(), first, strips, a: ti.template(), tile, tokens: ti.template(),
        worker,
    ):  # fmt: skip
        for strip in range(share_start(strips, worker, workers), share_start(strips, worker + 1, workers)):
            for i in range(chunks):
                start = i * TILE_COLUMNS
                columns = ti.min(TILE_COLUMNS, cols - start)
                decode(words, scales, first + strip, a, tile, start, columns)
                strip_product(a, tile, start, columns, tokens, tokens.y + strip * 4, 2)

    return matmul
