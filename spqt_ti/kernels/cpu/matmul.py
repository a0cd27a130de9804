"""Dense matrix product for prefill: Y [tokens, rows] = X [tokens, cols] W^T, W in the zigzag or the vocabulary's
layout.

The unit of work is a strip of 64 rows: 256 columns of it at a time are turned into f32 once and then used for every
token, four tokens and four vectors (64 rows) in registers. A strip belongs to one worker, so the result does not
depend on their number.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.multiply_add import make_multiply_add
from spqt_ti.kernels.cpu.vectors import f32x16, value
from spqt_ti.kernels.cpu.workers import share_start
from spqt_ti.kernels.cpu.zigzag import minima_of, panel_height, panel_start, scales_of
from spqt_ti.kernels.shared.words import NIBBLE_UNIT, nibbles_in_place

TILE_COLUMNS = 256
TILE_VECTORS = 4 * TILE_COLUMNS  # of a worker's tile of decoded weights
TOKENS = 4  # tokens side by side: token counts of X and Y are rounded up to it


@ti.func
def place_of(k: ti.template(), step):
    """Vector k of a strip, counted from its first: two and two rows of 16, `step` vectors apart."""
    return (k // 2) * step + k % 2


def make_strip_product():
    """Build the ti.func that multiplies a decoded tile by every token.

    Sums run over the tiles of a strip: they are kept in Y (in lane order) between tiles.
    """
    multiply_add, _ = make_multiply_add()

    @ti.func
    def strip_product(
        a: ti.template(), tile, start, columns, x, x_stride, y: ti.template(), y_base, y_stride, tokens, step,
    ):  # fmt: skip
        """Add the columns start..

        of this tile; vector k of the sums goes to y[y_base + token * y_stride + place_of(k, step)].
        """
        for group in range((tokens + TOKENS - 1) // TOKENS):
            sums = [f32x16(0.0) for _ in ti.static(range(4 * TOKENS))]
            out = y_base + group * TOKENS * y_stride
            if start > 0:
                for t in ti.static(range(TOKENS)):
                    for k in ti.static(range(4)):
                        sums[4 * t + k] = y[out + t * y_stride + place_of(k, step)]
            source = (x + group * TOKENS * x_stride) * 16 + start
            for j in range(columns):
                weights = [a[tile + 4 * j + k] for k in ti.static(range(4))]
                for t in ti.static(range(TOKENS)):
                    xj = f32x16(value(a, source + t * x_stride * 16 + j))
                    for k in ti.static(range(4)):
                        multiply_add(sums[4 * t + k], weights[k], xj)
            for t in ti.static(range(TOKENS)):
                for k in ti.static(range(4)):
                    y[out + t * y_stride + place_of(k, step)] = sums[4 * t + k]

    return strip_product


@ti.func
def put_in_order(y: ti.template(), y_base, y_stride, tokens, step):
    """Turn a finished strip from lane order (lane i of vector b is row 4i + b) into row order, for every token."""
    for token in range(tokens):
        at = y_base + token * y_stride
        sums = [y[at + place_of(b, step)] for b in ti.static(range(4))]
        for m in ti.static(range(4)):
            y[at + place_of(m, step)] = f32x16(*[sums[k & 3][4 * m + (k >> 2)] for k in ti.static(range(16))])


def make_matmul(workers: int):
    """Build the ti.func of one worker's strips of Y = X W^T for a zigzag matrix, whose geometry is a run-time argument.

    X: vectors a[x + token * x_stride ...]; Y likewise, whole bands (16 vectors each) per token; `tile`: TILE_VECTORS
    vectors of scratch of the worker's own.
    """
    strip_product = make_strip_product()

    @ti.func
    def decode_full(
        quants: ti.template(), quants_base, headers: ti.template(), headers_base, height, a: ti.template(), tile,
        start, columns, half, high,
    ):  # fmt: skip
        """64 rows of a full band in a panel of `height` bands: nibbles `high` of quants vector `half`; lane i of vector
        b: row 64 (i / 8) + 4 (i % 8) + b.
        """
        low = 4 * half + high
        for j in range(columns):
            place = (start + j) * height
            header = headers[headers_base + place]
            scales = scales_of(header)
            minima = minima_of(header)
            s0, s1, m0, m1 = scales[low], scales[low + 2], minima[low], minima[low + 2]
            scale = f32x16(*[(s0, s1)[i // 8] for i in ti.static(range(16))])
            minimum = f32x16(*[(m0, m1)[i // 8] for i in ti.static(range(16))])
            words = quants[quants_base + 2 * place + half] >> (4 * high)
            for b in ti.static(range(4)):
                a[tile + 4 * j + b] = (scale * NIBBLE_UNIT[2 * b]) * nibbles_in_place(words, b, 0) - minimum

    @ti.func
    def decode_tail(
        tail: ti.template(), tail_base, headers: ti.template(), headers_base, a: ti.template(), tile, start, columns,
    ):  # fmt: skip
        """The 64 rows of the tail band; lane i of vector b: row 32 (i / 8) + 4 (i % 8) + b."""
        for j in range(columns):
            header = headers[headers_base + start + j]
            scales = scales_of(header)
            minima = minima_of(header)
            scale = f32x16(*[scales[i // 8] for i in ti.static(range(16))])
            minimum = f32x16(*[minima[i // 8] for i in ti.static(range(16))])
            words = tail[tail_base + start + j]
            for b in ti.static(range(4)):
                low = nibbles_in_place(words, b, 0) * NIBBLE_UNIT[2 * b]
                high = nibbles_in_place(words, b, 1) * NIBBLE_UNIT[2 * b + 1]
                nibbles = f32x16(*[low[i] for i in ti.static(range(8))] + [high[i] for i in ti.static(range(8))])
                a[tile + 4 * j + b] = scale * nibbles - minimum

    @ti.func
    def matmul(
        quants: ti.template(), quants_base, tail: ti.template(), tail_base, headers: ti.template(), headers_base,
        cols, full_bands, tail_bands, panel_bands, a: ti.template(), tile, x, x_stride, y: ti.template(), y_base,
        y_stride, tokens, worker,
    ):  # fmt: skip
        strips = full_bands * 4 + tail_bands
        for strip in range(share_start(strips, worker, workers), share_start(strips, worker + 1, workers)):
            band = strip >> 2
            panel = panel_start(panel_bands, full_bands, band)
            height = panel_height(panel_bands, full_bands - panel)
            first = panel * cols + band - panel  # superblock of column 0
            half = (strip >> 1) & 1
            out = y_base + full_bands * 16
            step = 2
            if band < full_bands:
                out = y_base + band * 16 + 8 * half + 2 * (strip & 1)
                step = 4
            for i in range((cols + TILE_COLUMNS - 1) // TILE_COLUMNS):
                start = i * TILE_COLUMNS
                columns = ti.min(TILE_COLUMNS, cols - start)
                if band < full_bands:
                    decode_full(
                        quants, quants_base + first * 2, headers, headers_base + first, height, a, tile, start,
                        columns, half, strip & 1,
                    )  # fmt: skip
                else:
                    decode_tail(tail, tail_base, headers, headers_base + full_bands * cols, a, tile, start, columns)
                strip_product(a, tile, start, columns, x, x_stride, y, out, y_stride, tokens, step)
            put_in_order(y, out, y_stride, tokens, step)

    return matmul


def make_vocabulary_matmul(cols: int, workers: int):
    """Build the ti.func of one worker's tiles of Y = X W^T for the vocabulary matrix (see `head.tile`)."""
    strip_product = make_strip_product()
    chunks, groups = -(-cols // TILE_COLUMNS), cols // 32

    @ti.func
    def decode(words: ti.template(), scales: ti.template(), strip, a: ti.template(), tile, start, columns):
        for j in range(columns):
            w = words[strip * cols + start + j]
            for b in ti.static(range(4)):
                q = ((w >> (8 * b)) & 255) * 1.0 - 128.0
                a[tile + 4 * j + b] = q * scales[(strip * groups + ((start + j) >> 5)) * 4 + b]

    @ti.func
    def matmul(
        words: ti.template(), scales: ti.template(), first, strips, a: ti.template(), tile, x, x_stride,
        y: ti.template(), y_base, y_stride, tokens, worker,
    ):  # fmt: skip
        for strip in range(share_start(strips, worker, workers), share_start(strips, worker + 1, workers)):
            for i in range(chunks):
                start = i * TILE_COLUMNS
                columns = ti.min(TILE_COLUMNS, cols - start)
                decode(words, scales, first + strip, a, tile, start, columns)
                strip_product(a, tile, start, columns, x, x_stride, y, y_base + strip * 4, y_stride, tokens, 2)

    return matmul
