"""The quantisers of sub-blocks with a scale and a minimum: one is byte-identical to `formats.affine` (and so to ggml),
one looks longer for what has the least squared error (`closest`).
"""

from dataclasses import replace

from spqt_ti.backend import ti
from spqt_ti.formats.affine import Search
from spqt_ti.kernels.pack.tiles import F16_MAX, ROUND, half, lanes, outside, store_half

__all__ = [
    "AROUND",
    "DMIN",
    "LOW",
    "SCALE",
    "SCRATCH",
    "TILE",
    "D",
    "closest",
    "make_closest",
    "make_quantise",
    "make_value",
    "store_six_bit_header",
]

HUGE = 1e38
# Below these, an error term (weight * difference**2, where a difference is at least a rounding error) may be denormal.
TINY = 1e-9
TINY_RANGE = 1e-6
AROUND = 3  # multiples on either side of the rounded one that `make_closest` tries, of scale and of minimum

# Scratch, in vectors: the tile (later its quants), then a sub-block's weights and levels, then what the search found
# for each sub-block, then d and dmin.
TILE, WEIGHT, LEVEL, SCALE, LOW, KEPT_DIVISOR, KEPT_LOW, D, DMIN, SCRATCH = (
    0, 256, 288, 320, 336, 352, 368, 384, 385, 386,
)  # fmt: skip


def closest(how: Search) -> Search:
    """A search of the least squared error: of more divisors than ggml's, the first of them smaller."""
    return replace(how, first=-2.0, tries=31, absolute=False)


def make_closest(how: Search, sub_block: int, most_multiple: int):
    """As `make_quantise`, for the least squared error instead of ggml's bytes: all values weigh the same, and of the
    multiples AROUND the rounded ones those are taken with which a sub-block loses least.

    What rounding the scales costs is 4 % of Q4_K's squared error and 11 % of Q5_K's; this takes most of it back.
    """
    return make_quantise(closest(how), sub_block, most_multiple, AROUND)


def make_quantise(how: Search, sub_block: int, most_multiple: int, around: int = 0):
    """Build the ti.func (scratch, here) of `tiles.make_packer` for sub-blocks of `sub_block` values, whose scales and
    minima are multiples up to `most_multiple` of d and dmin. `around`: see `make_closest`.
    """
    sub_blocks, largest = 256 // sub_block, float(how.largest)
    first, tries, absolute, most = how.first, how.tries, how.absolute, float(most_multiple)

    @ti.func
    def quantise(scratch: ti.template(), here):
        """Replace the values by quants and find scales and minima; returns the lanes it cannot do."""
        bad = lanes(0.0)
        for j in range(sub_blocks):
            bad = ti.max(bad, search(scratch, here, j))
        d, multiple_bad = multiples(scratch, here + SCALE)
        dmin, min_bad = multiples(scratch, here + LOW)
        bad = ti.max(bad, ti.max(multiple_bad, min_bad))
        if ti.static(around > 0):
            for j in range(sub_blocks):
                refine(scratch, here, j, d, dmin)
        for j in range(sub_blocks):
            bad = ti.max(bad, requantise(scratch, here, j, d, dmin))
        scratch[here + D] = d
        scratch[here + DMIN] = dmin
        return bad

    @ti.func
    def levels(x, divisor, low):
        """Quants as floats. The clamp may come first: it keeps the sum small enough to round."""
        return ti.min(ti.max(divisor * (x - low), 0.0), largest) + ROUND - ROUND

    @ti.func
    def error_of(difference):
        result = difference * difference
        if ti.static(absolute):
            result = ti.max(difference, 0.0 - difference)
        return result

    @ti.func
    def weigh(scratch: ti.template(), here, tile, average):
        """Weights of a sub-block to the scratch; returns their sum, that of the weighted values, and the smallest
        magnitude that is not zero.
        """
        sum_w = lanes(0.0)
        sum_x = lanes(0.0)
        smallest = lanes(1.0)
        for i in range(sub_block):
            x = scratch[tile + i]
            size = ti.max(x, 0.0 - x)
            smallest = ti.min(smallest, ti.select(size > 0.0, size, lanes(1.0)))
            w = size
            if ti.static(not absolute):
                w = average + size
            if ti.static(around > 0):
                w = lanes(1.0)
            scratch[here + WEIGHT + i] = w
            sum_w += w
            sum_x += w * x
        return sum_w, sum_x, smallest

    @ti.func
    def search(scratch: ti.template(), here, j):
        """Scale, minimum and best fit of sub-block `j`, as `formats.affine.search`; returns the lanes it cannot do."""
        tile = here + TILE + j * sub_block
        square = lanes(0.0)
        high = scratch[tile]
        lowest = scratch[tile]
        for i in range(sub_block):
            x = scratch[tile + i]
            square += x * x
            high = ti.max(high, x)
            lowest = ti.min(lowest, x)
        sum_w, sum_x, smallest = weigh(scratch, here, tile, ti.sqrt(square / ti.static(float(sub_block))))
        low = ti.min(lowest, 0.0)
        flat = high == low
        divisor = largest / (high - low)
        scale = 1.0 / divisor
        kept_divisor = divisor
        kept_low = low
        # The sum of squares catches NaN, which comparisons may lose, and infinity.
        bad = ti.select((square < HUGE) & (smallest >= TINY) & (high - low >= TINY_RANGE), lanes(0.0), lanes(1.0))
        bad = ti.max(bad, ti.max(outside(divisor * (high - low)), outside(divisor * (lowest - low))))
        best = lanes(0.0)
        for i in range(sub_block):
            x = scratch[tile + i]
            best += scratch[here + WEIGHT + i] * error_of(scale * levels(x, divisor, low) + low - x)
        for step in range(tries):
            divisor = (first + 0.1 * ti.cast(step, ti.f32) + largest) / (high - low)
            bad = ti.max(bad, ti.max(outside(divisor * (high - low)), outside(divisor * (lowest - low))))
            sum_l = lanes(0.0)
            sum_l2 = lanes(0.0)
            sum_xl = lanes(0.0)
            for i in range(sub_block):
                x = scratch[tile + i]
                level = levels(x, divisor, low)
                scratch[here + LEVEL + i] = level
                wl = scratch[here + WEIGHT + i] * level
                sum_l += wl
                sum_l2 += wl * level
                sum_xl += wl * x
            det = sum_w * sum_l2 - sum_l * sum_l
            new_low = (sum_l2 * sum_x - sum_l * sum_xl) / det
            new_scale = ti.select(new_low > 0.0, sum_xl / sum_l2, (sum_w * sum_xl - sum_x * sum_l) / det)
            new_low = ti.min(new_low, 0.0)
            error = lanes(0.0)
            for i in range(sub_block):
                difference = new_scale * scratch[here + LEVEL + i] + new_low - scratch[tile + i]
                error += scratch[here + WEIGHT + i] * error_of(difference)
            better = (det > 0.0) & (error < best)
            kept_divisor = ti.select(better, divisor, kept_divisor)
            kept_low = ti.select(better, low, kept_low)
            best = ti.select(better, error, best)
            scale = ti.select(better, new_scale, scale)
            low = ti.select(better, new_low, low)
        zero = lanes(0.0)
        scratch[here + SCALE + j] = ti.select(flat, zero, scale)
        scratch[here + LOW + j] = 0.0 - low
        scratch[here + KEPT_DIVISOR + j] = ti.select(flat, zero, kept_divisor)
        scratch[here + KEPT_LOW + j] = ti.select(flat, zero, kept_low)
        return ti.select(flat & (square < HUGE) & (smallest >= TINY), zero, bad)

    @ti.func
    def multiples(scratch: ti.template(), parts):
        """Replace scales (or minima) by their multiples; return the f16-rounded super-scale and the bad lanes."""
        most_part = lanes(0.0)
        for j in range(sub_blocks):
            most_part = ti.max(most_part, scratch[parts + j])
        inverse = ti.select(most_part > 0.0, most / most_part, lanes(0.0))
        bad = lanes(0.0)
        for j in range(sub_blocks):
            v = inverse * scratch[parts + j]
            # Below zero ggml wraps around in a byte: rare enough to leave to NumPy.
            bad = ti.max(bad, ti.select((v >= -0.5) & (v < most + 1.0), lanes(0.0), lanes(1.0)))
            scratch[parts + j] = ti.min(ti.max(v, 0.0), most) + ROUND - ROUND
        rounded = half(most_part / most)
        return rounded, ti.max(bad, ti.select(rounded <= F16_MAX, lanes(0.0), lanes(1.0)))

    @ti.func
    def refine(scratch: ti.template(), here, j, d, dmin):
        """Replace the multiples of sub-block `j` by those around them with which it loses least."""
        tile = here + TILE + j * sub_block
        scale = scratch[here + SCALE + j]
        low = scratch[here + LOW + j]
        best_scale = scale
        best_low = low
        best = lanes(HUGE)
        for a in range(-around, around + 1):
            tried_scale = ti.min(ti.max(scale + ti.cast(a, ti.f32), 1.0), most)
            step = d * tried_scale
            inverse = 1.0 / ti.select(step > 0.0, step, lanes(1.0))
            for b in range(-around, around + 1):
                tried_low = ti.min(ti.max(low + ti.cast(b, ti.f32), 0.0), most)
                offset = dmin * tried_low
                error = lanes(0.0)
                for i in range(sub_block):
                    v = scratch[tile + i] + offset
                    error += error_of(step * (ti.min(ti.max(v * inverse, 0.0), largest) + ROUND - ROUND) - v)
                better = error < best
                best = ti.select(better, error, best)
                best_scale = ti.select(better, tried_scale, best_scale)
                best_low = ti.select(better, tried_low, best_low)
        found = (scale > 0.0) & (d > 0.0)  # else the quants are those of the search
        scratch[here + SCALE + j] = ti.select(found, best_scale, scale)
        scratch[here + LOW + j] = ti.select(found, best_low, low)

    @ti.func
    def requantise(scratch: ti.template(), here, j, d, dmin):
        """Overwrite sub-block `j` of the tile with its final quants (as floats); return the bad lanes."""
        tile = here + TILE + j * sub_block
        step = d * scratch[here + SCALE + j]
        offset = dmin * scratch[here + LOW + j]
        divisor = scratch[here + KEPT_DIVISOR + j]
        low = scratch[here + KEPT_LOW + j]
        keep = step == 0.0
        bad = lanes(0.0)
        for i in range(sub_block):
            x = scratch[tile + i]
            v = (x + offset) / step
            bad = ti.max(bad, outside(v))
            level = ti.min(ti.max(v, 0.0), largest) + ROUND - ROUND
            scratch[tile + i] = ti.select(keep, levels(x, divisor, low), level)
        return ti.select(keep, lanes(0.0), bad)

    return quantise


def make_value(sub_block: int):
    """Build the ti.func (scratch, here, k) of `tiles.make_packer`, after the one of `make_quantise`."""

    @ti.func
    def value(scratch: ti.template(), here, k):
        """What value `k` has become."""
        j = k // sub_block
        step = scratch[here + D] * scratch[here + SCALE + j]
        return step * scratch[here + TILE + k] - scratch[here + DMIN] * scratch[here + LOW + j]

    return value


@ti.func
def store_six_bit_header(scratch: ti.template(), here, lane, out: ti.template(), at):
    """The 16 bytes that Q4_K and Q5_K begin with."""
    store_half(out, at, scratch[here + D][lane])
    store_half(out, at + 2, scratch[here + DMIN][lane])
    for j in range(4):
        scale = ti.cast(scratch[here + SCALE + j][lane], ti.i32)
        low = ti.cast(scratch[here + LOW + j][lane], ti.i32)
        scale4 = ti.cast(scratch[here + SCALE + 4 + j][lane], ti.i32)
        low4 = ti.cast(scratch[here + LOW + 4 + j][lane], ti.i32)
        out[at + 4 + j] = ti.cast(scale | ((scale4 >> 4) << 6), ti.u8)
        out[at + 8 + j] = ti.cast(low | ((low4 >> 4) << 6), ti.u8)
        out[at + 12 + j] = ti.cast((scale4 & 15) | ((low4 & 15) << 4), ti.u8)
