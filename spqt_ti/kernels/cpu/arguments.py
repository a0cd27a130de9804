"""Arguments that go together through many ti.funcs.

A NamedTuple that is made inside `ti.static(...)` passes as one argument. It compiles to nothing: its fields are the
arrays and variables it was made of. An expression would be computed again at each use, and a kernel's own argument be
loaded again, so both go into a variable before.
"""

from typing import Any, NamedTuple


class Matrix(NamedTuple):
    """A zigzag matrix: three arrays, its first vector in each, their addresses, and its geometry (see ZigzagShape)."""

    quants: Any
    quants_base: Any
    tail: Any
    tail_base: Any
    headers: Any
    headers_base: Any
    quants_address: Any
    tail_address: Any
    headers_address: Any
    cols: Any
    full_bands: Any
    tail_bands: Any
    panel_bands: Any


class Inputs(NamedTuple):
    """The input that begins at vector x[x_base], and `count` entries of a list of columns, from `first` on."""

    x: Any
    x_base: Any
    active: Any
    first: Any
    count: Any


class Panel(NamedTuple):
    """Bands side by side: `height` of them, whose first vectors are quants[quants_from] and headers[headers_from]."""

    quants: Any
    quants_from: Any
    headers: Any
    headers_from: Any
    quants_address: Any
    headers_address: Any
    height: Any


class Sums(NamedTuple):
    """First vectors, in array `a`, of sums and of scratch beside them."""

    a: Any
    sums: Any
    scratch: Any
