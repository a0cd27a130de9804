"""What happens to a value or a pair of values alone: rotation by an angle (RoPE) and SwiGLU."""

from spqt_ti.backend import ti


@ti.func
def rotated(low, high, cos, sin):
    """The pair (entries d and d + head_dim / 2 of a head), turned."""
    return low * cos - high * sin, high * cos + low * sin


@ti.func
def swiglu(gate, up):
    """silu(gate) * up."""
    return gate / (1.0 + ti.exp(0.0 - gate)) * up
