"""Q4_K in 16 bits for the tokens of a chunk: Y [tokens, rows] = X [tokens, cols] W^T with AVX-512 VNNI or AVX2.

With q the nibbles, a weight of sub-block s in column j is d_j scale_sj q - dmin_j min_sj, or

    d_j scale_sj (q - 8) - m_sj        with m_sj = dmin_j min_sj - 8 d_j scale_sj.

scale (q - 8) is an integer of 10 bits. x d is rounded to 16 bits, once per token and band, and one instruction adds the
products of two columns in 16 rows: 945 is the largest factor less than 2^10, so 64 columns cannot overflow 32 bits. The
m_sj, an eighth of a superblock's rows, are multiplied by x in f32. So nothing but x d is rounded. A step is 1/32767 of
a token's largest x d of a tile of columns; centring the nibbles halves what rounding costs, as in q4_k_16_bits.py.

A tile is a band's 256 rows and COLUMNS columns, decoded once for all tokens. Sums of a strip of 64 rows and four tokens
stay in registers over a tile, and in the worker's scratch between tiles.

Inputs of down are mostly exact zeros where the activation is a ReLU. There two columns whose inputs are zero for all of
four tokens are left out, which changes no bit of a whole number.
"""

from typing import Any, NamedTuple

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.multiply_add import make_multiply_add
from spqt_ti.kernels.cpu.tokens import TOKENS, write_in_order
from spqt_ti.kernels.cpu.vectors import f32x16, i32x16, u32x4, u32x16, value
from spqt_ti.kernels.cpu.workers import share_start
from spqt_ti.kernels.cpu.zigzag import panel_height, panel_start

COLUMNS = 64  # of a tile
_PAIRS = COLUMNS // 2
_X_VECTORS = COLUMNS // 16  # of x per token
_ROUNDED = COLUMNS // 32  # vectors of rounded x d per token
_WEIGHTS = 16 * _PAIRS  # vectors of a tile
_SUMS = 16  # vectors per token of a band


class Scratch(NamedTuple):
    """First vectors of a worker's scratch."""

    weights: Any  # [4 strips][pairs][4]: 16 rows each, of two columns in the halves of a lane
    minima: Any  # [pairs]: m_sj, lane 2 s + c
    d: Any  # [columns / 16]
    rounded: Any  # [tokens][columns / 32]: x d in steps
    offsets: Any  # [tokens]: sums of x m, lane 2 s + c
    steps: Any  # [tokens / 16]
    masks: Any  # [tokens / 64]: of four tokens the pairs of columns that are not all zero, a bit each
    sums: Any  # [4 strips][tokens][4]


def scratch_vectors(tokens: int) -> int:
    """Vectors of a worker's scratch for up to so many tokens."""
    padded = -(-tokens // 16) * 16
    return _WEIGHTS + _PAIRS + _X_VECTORS + padded * (_ROUNDED + 1 + _SUMS) + padded // 16 + -(-padded // 64)


def make_matmul(workers: int, has_tail: bool, skips_zeros: bool = False):
    """Build the ti.func (Matrix, a, scratch, Tokens, worker) of one worker's strips of Y = X W^T.

    `scratch`: the first of scratch_vectors(tokens) vectors of the worker's own in `a`. Y has whole bands (16 vectors
    each). No sum depends on the number of workers. `skips_zeros`: for inputs many of which are zero; same bits.
    """
    multiply_add, _ = make_multiply_add()
    native16, chunks = native.load_16_bits(), native.load_chunks()
    # Vectors of a strip whose sums are in registers at the same time: AVX2 has half of 16 for those of one.
    together = 4 if native.products_by() == "x86_64_vnni" else 1

    @ti.func
    def put(a: ti.template(), at, bits):
        v = bits
        vector = f32x16(0.0)
        native16.float_of(v, vector)
        a[at] = vector

    @ti.func
    def put_header(a: ti.template(), s: ti.template(), pair, minima, d_one, d_two):
        a[s.minima + pair] = minima
        a[s.d + (pair >> 3)][(2 * pair) & 15] = d_one
        a[s.d + (pair >> 3)][(2 * pair + 1) & 15] = d_two

    @ti.func
    def decode_band(m: ti.template(), first, height, a: ti.template(), s: ti.template(), start, columns):
        """The columns start.. of the band whose column 0 is superblock `first`."""
        for pair in range((columns + 1) // 2):
            at = first + (start + 2 * pair) * height
            one = m.headers[m.headers_base + at]
            two = u32x4(0)  # beyond the last column: d = dmin = 0
            words = [m.quants[m.quants_base + 2 * at + v] for v in ti.static(range(2))]
            others = [u32x16(0) for _ in ti.static(range(2))]
            if 2 * pair + 1 < columns:
                two = m.headers[m.headers_base + at + height]
                for v in ti.static(range(2)):
                    others[v] = m.quants[m.quants_base + 2 * (at + height) + v]
            scales = [i32x16(0) for _ in ti.static(range(5))]
            minima, d_one, d_two = f32x16(0.0), 0.0, 0.0
            chunks.pair_headers(one, two, scales[0], scales[1], scales[2], scales[3], scales[4], minima, d_one, d_two)
            put_header(a, s, pair, minima, d_one, d_two)
            for v in ti.static(range(2)):
                w = [i32x16(0) for _ in ti.static(range(8))]
                chunks.scaled_weights(
                    words[v], others[v], scales[2 * v], scales[2 * v + 1],
                    w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7],
                )  # fmt: skip
                for i in ti.static(range(8)):
                    put(a, s.weights + (2 * v + i // 4) * ti.static(4 * _PAIRS) + 4 * pair + i % 4, w[i])

    @ti.func
    def tail_words(m: ti.template(), column):
        """Words of the tail band's column, the low nibbles of lanes 8 to 15 being the high ones of lanes 0 to 7."""
        words = m.tail[m.tail_base + column]
        high = words >> 4
        return u32x16(*[words[i] for i in ti.static(range(8))], *[high[i] for i in ti.static(range(8))])

    @ti.func
    def decode_tail(m: ti.template(), a: ti.template(), s: ti.template(), start, columns):
        """The columns start.. of the tail band, as one strip."""
        headers = m.headers_base + m.full_bands * m.cols
        for pair in range((columns + 1) // 2):
            column = start + 2 * pair
            one = m.headers[headers + column]
            two = u32x4(0)
            words = tail_words(m, column)
            others = u32x16(0)
            if 2 * pair + 1 < columns:
                two = m.headers[headers + column + 1]
                others = tail_words(m, column + 1)
            scales = [i32x16(0) for _ in ti.static(range(5))]
            minima, d_one, d_two = f32x16(0.0), 0.0, 0.0
            chunks.pair_headers(one, two, scales[0], scales[1], scales[2], scales[3], scales[4], minima, d_one, d_two)
            put_header(a, s, pair, minima, d_one, d_two)
            w = [i32x16(0) for _ in ti.static(range(8))]
            chunks.scaled_weights(words, others, scales[4], scales[4], w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7])
            for b in ti.static(range(4)):
                put(a, s.weights + 4 * pair + b, w[b])

    @ti.func
    def round_token(a: ti.template(), x, s: ti.template(), token, columns):
        """x d of a token to 16 bits; what is beyond the last column becomes zero."""
        products = [f32x16(0.0) for _ in ti.static(range(_X_VECTORS))]
        largest = f32x16(1e-30)
        for k in ti.static(range(_X_VECTORS)):
            left = columns - 16 * k
            if left > 0:
                v = a[x + k] * a[s.d + k]
                if left < 16:
                    v = f32x16(*[ti.select(i < left, v[i], 0.0) for i in ti.static(range(16))])
                native16.widen(largest, v)
                products[k] = v
        most = 0.0
        chunks.largest_lane(largest, most)
        step = most * (1.0 / 32767.0)
        a[s.steps + (token >> 4)][token & 15] = step
        inverse = f32x16(1.0 / step)
        for k in ti.static(range(_ROUNDED)):
            pairs = i32x16(0)
            chunks.round_pairs(products[2 * k], products[2 * k + 1], inverse, pairs)
            put(a, s.rounded + token * _ROUNDED + k, pairs)

    @ti.func
    def add_offsets(a: ti.template(), tokens: ti.template(), s: ti.template(), start, columns):
        """Add x m of the columns start.. of a tile to every token's offsets."""
        stride = ti.cast(tokens.x_stride, ti.i64) << 6
        for batch in range((tokens.count + TOKENS - 1) // TOKENS):
            token = batch * TOKENS
            sums = [f32x16(0.0) for _ in ti.static(range(2 * TOKENS))]  # two chains: one would wait for each addition
            first = (tokens.x + token * tokens.x_stride) * 16 + start
            at = tokens.address + (ti.cast(first, ti.i64) << 2)
            for two in range(columns // 4):
                for c in ti.static(range(2)):
                    minima = a[s.minima + 2 * two + c]
                    for t in ti.static(range(TOKENS)):
                        x_at = at + (t * stride + 8 * c)
                        x = f32x16(0.0)
                        chunks.broadcast_pair(x_at, x)
                        multiply_add(sums[TOKENS * c + t], minima, x)
                at += 16
            for j in range(columns // 4 * 4, columns):
                odd = j & 1
                minima = a[s.minima + (j >> 1)]
                only = f32x16(*[ti.select(i % 2 == odd, minima[i], 0.0) for i in ti.static(range(16))])
                for t in ti.static(range(TOKENS)):
                    multiply_add(sums[t], only, f32x16(value(a, first + t * tokens.x_stride * 16 + j)))
            for t in ti.static(range(TOKENS)):
                a[s.offsets + token + t] = a[s.offsets + token + t] + (sums[t] + sums[TOKENS + t])

    @ti.func
    def find_zeros(a: ti.template(), tokens: ti.template(), s: ti.template()):
        """Write every batch's mask."""
        at = tokens.address + (ti.cast(s.rounded, ti.i64) << 6)
        for batch in range((tokens.count + TOKENS - 1) // TOKENS):
            words = [i32x16(0) for _ in ti.static(range(_ROUNDED))]
            for _ in ti.static(range(TOKENS)):
                for k in ti.static(range(_ROUNDED)):
                    x = i32x16(0)
                    native16.load64(at, x)
                    words[k] |= x
                    at += 64
            mask = 0
            chunks.nonzero_words(words[0], words[1], mask)
            a[s.masks + (batch >> 4)][batch & 15] = ti.bit_cast(mask, ti.f32)

    @ti.func
    def add_pair(weights_at, pair_at, totals: ti.template()):
        """Add a pair of columns to `together` vectors of the sums of four tokens."""
        weights = [i32x16(0) for _ in ti.static(range(together))]
        for k in ti.static(range(together)):
            at = weights_at + 64 * k
            native16.load64(at, weights[k])
        for t in ti.static(range(TOKENS)):
            at = pair_at + ti.static(64 * _ROUNDED) * t
            x = i32x16(0)
            chunks.broadcast32(at, x)
            for k in ti.static(range(together)):
                native16.dot2(totals[together * t + k], weights[k], x)

    @ti.func
    def add_pairs(weights_from, x_at, pairs, totals: ti.template()):
        weights_at, pair_at = weights_from, x_at
        for _ in range(pairs):
            native16.not_unrolled()
            add_pair(weights_at, pair_at, totals)
            weights_at += 256
            pair_at += 4

    @ti.func
    def add_listed_pairs(weights_from, x_at, mask, count, totals: ti.template()):
        left = mask
        for _ in range(count):
            native16.not_unrolled()
            offset = ti.cast(0, ti.i64)
            chunks.take_lowest(left, offset)
            add_pair(weights_from + (offset << 6), x_at + offset, totals)

    @ti.func
    def strip_product(a: ti.template(), tokens: ti.template(), s: ti.template(), strip, pairs):
        """Add a tile's products to the sums of a strip, for every token."""
        batches = (tokens.count + TOKENS - 1) // TOKENS
        weights_from = tokens.address + (ti.cast(s.weights + strip * ti.static(4 * _PAIRS), ti.i64) << 6)
        x_at = tokens.address + (ti.cast(s.rounded, ti.i64) << 6)
        sums = s.sums + strip * batches * (4 * TOKENS)
        for batch in range(batches):
            for group in ti.static(range(4 // together)):
                totals = [i32x16(0) for _ in ti.static(range(together * TOKENS))]
                weights_at = weights_from + 64 * together * group
                if ti.static(skips_zeros):
                    mask = ti.bit_cast(value(a, s.masks * 16 + batch), ti.i32)
                    count = 0
                    chunks.count_bits(mask, count)
                    if 8 * count < 7 * pairs:
                        add_listed_pairs(weights_at, x_at, mask, count, totals)
                    else:
                        add_pairs(weights_at, x_at, pairs, totals)
                else:
                    add_pairs(weights_at, x_at, pairs, totals)
                for t in ti.static(range(TOKENS)):
                    step = f32x16(value(a, s.steps * 16 + batch * TOKENS + t))
                    for k in ti.static(range(together)):
                        place = sums + 4 * t + together * group + k
                        total = a[place]
                        multiply_add(total, totals[together * t + k] * 1.0, step)
                        a[place] = total
            x_at += ti.static(64 * _ROUNDED * TOKENS)
            sums += 4 * TOKENS

    @ti.func
    def write_strip(a: ti.template(), tokens: ti.template(), s: ti.template(), strip, low, high, out, step):
        """A finished strip to Y, of sub-blocks `low` and `high`, its first vector of a token at `out`."""
        sums = s.sums + strip * ((tokens.count + TOKENS - 1) // TOKENS) * (4 * TOKENS)
        for token in range(tokens.count):
            offsets = a[s.offsets + token]
            minima = [offsets[2 * low] + offsets[2 * low + 1], offsets[2 * high] + offsets[2 * high + 1]]
            offset = f32x16(*[minima[i // 8] for i in ti.static(range(16))])
            rows = [a[sums + 4 * token + b] - offset for b in ti.static(range(4))]
            write_in_order(a, out + token * tokens.y_stride, step, rows)

    @ti.func
    def matmul(m: ti.template(), a: ti.template(), scratch, tokens: ti.template(), worker):
        padded = (tokens.count + 15) // 16 * 16
        minima = scratch + _WEIGHTS
        d = minima + _PAIRS
        rounded = d + _X_VECTORS
        offsets = rounded + padded * _ROUNDED
        steps = offsets + padded
        masks = steps + padded // 16
        sums = masks + (padded + 63) // 64
        s = ti.static(Scratch(scratch, minima, d, rounded, offsets, steps, masks, sums))
        strips = m.full_bands * 4 + m.tail_bands
        first_strip = share_start(strips, worker, workers)
        last_strip = share_start(strips, worker + 1, workers)
        last_band = ti.select(first_strip < last_strip, (last_strip + 3) >> 2, 0)
        for band in range(first_strip >> 2, last_band):
            panel = panel_start(m.panel_bands, m.full_bands, band)
            height = panel_height(m.panel_bands, m.full_bands - panel)
            first = panel * m.cols + band - panel  # superblock of column 0
            begin = ti.max(first_strip - 4 * band, 0)
            end = ti.min(last_strip - 4 * band, 4)
            for i in range(sums + padded * _SUMS - offsets):
                a[offsets + i] = f32x16(0.0)
            for tile in range((m.cols + COLUMNS - 1) // COLUMNS):
                start = tile * COLUMNS
                columns = ti.min(COLUMNS, m.cols - start)
                if ti.static(has_tail):
                    if band < m.full_bands:
                        decode_band(m, first, height, a, s, start, columns)
                    else:
                        decode_tail(m, a, s, start, columns)
                else:
                    decode_band(m, first, height, a, s, start, columns)
                for token in range(tokens.count):
                    round_token(a, tokens.x + token * tokens.x_stride + (start >> 4), s, token, columns)
                add_offsets(a, tokens, s, start, columns)
                if ti.static(skips_zeros):
                    find_zeros(a, tokens, s)
                for strip in range(begin, end):
                    strip_product(a, tokens, s, strip, (columns + 1) // 2)
            if band < m.full_bands:
                for strip in range(begin, end):
                    half = strip >> 1
                    high = strip & 1
                    low = 4 * half + high
                    write_strip(a, tokens, s, strip, low, low + 2, tokens.y + band * 16 + 8 * half + 2 * high, 4)
            else:
                write_strip(a, tokens, s, 0, 0, 1, tokens.y + m.full_bands * 16, 2)

    return matmul
