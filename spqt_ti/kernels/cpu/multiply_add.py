"""total += a * b on vectors: fused where the CPU and the native helpers have it, else a product and a sum."""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu import native


def make_multiply_add():
    """The ti.funcs for 16 and for 8 lanes. The fused one rounds once, the plain one twice; both are deterministic."""
    helpers = native.load()
    fused = helpers is not None

    @ti.func
    def multiply_add16(total: ti.template(), a, b):
        if ti.static(fused):
            left = a
            right = b
            helpers.fma16(total, left, right)
        else:
            total += a * b

    @ti.func
    def multiply_add8(total: ti.template(), a, b):
        if ti.static(fused):
            left = a
            right = b
            helpers.fma8(total, left, right)
        else:
            total += a * b

    return multiply_add16, multiply_add8
