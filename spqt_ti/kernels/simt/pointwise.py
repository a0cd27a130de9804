"""What happens to a pair of values alone: rotation by an angle (RoPE)."""

from spqt_ti.backend import ti


@ti.func
def rotated(low, high, cos, sin):
    """The pair (entries d and d + head_dim / 2 of a head), turned."""
    return low * cos - high * sin, high * cos + low * sin
