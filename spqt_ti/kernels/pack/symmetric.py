"""The quantiser of sub-blocks with a scale alone, as Q3_K and Q6_K have them, for the least squared error.

ggml weighs values by their squares, which is right where nothing is known of the inputs; what GPTQ minimises has the
same weight for all outputs of a column. The quantisers that are byte-identical to ggml are in q3_k.py and q6_k.py.
"""

from dataclasses import dataclass

from spqt_ti.backend import ti
from spqt_ti.kernels.pack.tiles import F16_MAX, ROUND, extreme, half, lanes

__all__ = ["AROUND", "Shape", "make_closest"]

AROUND = 3  # multiples on either side of the rounded one that are tried
TRIES = 31  # of divisors, 0.1 apart, in the middle of which the largest value is the largest quant
# What a fit compares is of the fourth power of the values: outside these it may be denormal or infinite.
SMALL, LARGE_SQUARES = 1e-6, 1e9


@dataclass(frozen=True)
class Shape:
    """A scheme of `values` in sub-blocks: quants -`quants` to `quants` - 1, multiples of d -`multiples` to `multiples`
    - 1. Scratch: the tile from 0, multiples from `scale`, d at `d`.
    """

    values: int
    sub_block: int
    quants: int
    multiples: int
    scale: int
    d: int


def make_closest(shape: Shape):
    """Build the ti.func (scratch, here) `closest` of `tiles.make_packer`: quants from 0 upwards, as floats."""
    sub_block, sub_blocks = shape.sub_block, shape.values // shape.sub_block
    quants, multiples, scale_at, d_at = float(shape.quants), float(shape.multiples), shape.scale, shape.d
    signs = 2 if shape.quants < 8 else 1  # with few quants it matters which sign has one more

    @ti.func
    def levels(v):
        return ti.min(ti.max(v, 0.0 - quants), quants - 1.0) + ROUND - ROUND

    @ti.func
    def search(scratch: ti.template(), here, j):
        """Scale of the best fit of sub-block `j`; returns the lanes it cannot do."""
        tile = here + j * sub_block
        most = extreme(scratch, tile, ti.static(sub_block))
        size = ti.max(most, 0.0 - most)
        squares = lanes(0.0)
        for i in range(sub_block):
            squares += scratch[tile + i] * scratch[tile + i]  # catches NaN, which comparisons may lose
        unit = 1.0 / ti.select(size > 0.0, most, lanes(1.0))
        scale = lanes(0.0)
        best = lanes(0.0)
        for attempt in range(ti.static(signs * TRIES)):
            number = attempt % TRIES
            divisor = (quants + 0.1 * ti.cast(number - ti.static(TRIES // 2), ti.f32)) * unit
            if attempt < TRIES:
                divisor = 0.0 - divisor
            sum_lx = lanes(0.0)
            sum_l2 = lanes(0.0)
            for i in range(sub_block):
                x = scratch[tile + i]
                level = levels(divisor * x)
                sum_lx += x * level
                sum_l2 += level * level
            better = (sum_l2 > 0.0) & (sum_lx * sum_lx > best * sum_l2)
            fit = sum_lx / ti.select(sum_l2 > 0.0, sum_l2, lanes(1.0))
            scale = ti.select(better, fit, scale)
            best = ti.select(better, fit * sum_lx, best)
        scratch[here + scale_at + j] = scale
        possible = (squares < LARGE_SQUARES) & ((size >= SMALL) | (size == 0.0))
        return ti.select(possible, lanes(0.0), lanes(1.0))

    @ti.func
    def refine(scratch: ti.template(), here, j, d, middle):
        """The multiple of d around `middle` with which sub-block `j` loses least, and its quants."""
        tile = here + j * sub_block
        found = middle
        best = lanes(3e38)
        for a in range(-AROUND, AROUND + 1):
            tried = ti.min(ti.max(middle + ti.cast(a, ti.f32), 0.0 - multiples), multiples - 1.0)
            step = d * tried
            inverse = 1.0 / ti.select(step == 0.0, lanes(1.0), step)
            error = lanes(0.0)
            for i in range(sub_block):
                difference = step * levels(scratch[tile + i] * inverse) - scratch[tile + i]
                error += difference * difference
            better = error < best
            found = ti.select(better, tried, found)
            best = ti.select(better, error, best)
        scratch[here + scale_at + j] = found
        step = d * found
        inverse = 1.0 / ti.select(step == 0.0, lanes(1.0), step)
        for i in range(sub_block):
            scratch[tile + i] = levels(scratch[tile + i] * inverse) + quants

    @ti.func
    def closest(scratch: ti.template(), here):
        """Replace the values by quants and find multiples and d; returns the lanes it cannot do."""
        bad = lanes(0.0)
        for j in range(sub_blocks):
            bad = ti.max(bad, search(scratch, here, j))
        largest = extreme(scratch, here + scale_at, ti.static(sub_blocks))
        empty = largest == 0.0
        inverse = (0.0 - multiples) / ti.select(empty, lanes(1.0), largest)
        d = half(ti.select(empty, lanes(0.0), 1.0 / inverse))
        for j in range(sub_blocks):
            refine(scratch, here, j, d, inverse * scratch[here + scale_at + j] + ROUND - ROUND)
        scratch[here + d_at] = d
        return ti.max(bad, ti.select((d <= F16_MAX) & (d >= -F16_MAX), lanes(0.0), lanes(1.0)))

    return closest
