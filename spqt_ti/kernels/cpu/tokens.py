"""The tokens of a chunk, as prefill's products see them, and where the rows of a strip of 64 go."""

from typing import Any, NamedTuple

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.vectors import f32x16

TOKENS = 4  # side by side: token counts of X and Y are rounded up to it


class Tokens(NamedTuple):
    """`count` tokens: where X and Y begin, and how many vectors lie between one token and the next. `address`: of the
    array that they are in.
    """

    x: Any
    x_stride: Any
    y: Any
    y_stride: Any
    count: Any
    address: Any


@ti.func
def place_of(k: ti.template(), step):
    """Vector k of a strip, counted from its first: two and two rows of 16, `step` vectors apart."""
    return (k // 2) * step + k % 2


@ti.func
def write_in_order(a: ti.template(), out, step, sums: ti.template()):
    """Write a strip's four vectors of sums, whose lane i of vector b is row 4 i + b, in the order of the rows."""
    for m in ti.static(range(4)):
        a[out + place_of(m, step)] = f32x16(*[sums[k & 3][4 * m + (k >> 2)] for k in ti.static(range(16))])
