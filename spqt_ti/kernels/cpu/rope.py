"""Rotary position embedding in Hugging Face's order: value d of a head is paired with value d + head_dim / 2."""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.vectors import value


@ti.func
def rotate(a: ti.template(), head, table: ti.template(), row, half: ti.template(), turned: ti.template()):
    """Rotate in place the first `turned` pairs of the head of `half` pairs whose first value is a[head]; the position's
    row of the table begins at value table[row]. A pair's entries are `turned` apart.
    """
    for d in range(turned):
        cos = value(table, row + d)
        sin = value(table, row + half + d)
        low = value(a, head + d)
        high = value(a, head + turned + d)
        a[(head + d) >> 4][(head + d) & 15] = low * cos - high * sin
        a[(head + turned + d) >> 4][(head + turned + d) & 15] = high * cos + low * sin
