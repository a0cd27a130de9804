"""Vector types and lane arithmetic that the CPU kernels share.

On the CPU backend a `ti.types.vector(16, f32)` stays one LLVM vector (see `backend.start`), so these compile to
AVX-512, AVX2 or NEON code. All activations live in ndarrays of 16-lane vectors; a single value is read as `a[i >>
4][i & 15]`.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.shared.geometry import LANES

f32x16 = ti.types.vector(16, ti.f32)
f32x8 = ti.types.vector(8, ti.f32)
f16x16 = ti.types.vector(16, ti.f16)
u32x16 = ti.types.vector(16, ti.u32)
u32x8 = ti.types.vector(8, ti.u32)
u32x4 = ti.types.vector(4, ti.u32)
i32x16 = ti.types.vector(16, ti.i32)
i32x8 = ti.types.vector(8, ti.i32)
i32x4 = ti.types.vector(4, ti.i32)
i64x2 = ti.types.vector(2, ti.i64)
i64x4 = ti.types.vector(4, ti.i64)


def array_of(dtype):
    """Annotation of a one-dimensional ndarray argument."""
    return ti.types.ndarray(dtype=dtype, ndim=1)


def vectors_for(values: int) -> int:
    """Number of 16-lane vectors that hold `values` values."""
    return -(-values // LANES)


@ti.func
def value(a: ti.template(), i):
    """Value `i` of an array of 16-lane vectors."""
    return a[i >> 4][i & 15]


@ti.func
def lane_sum(v):
    """Sum of the 16 lanes, as a tree: the order is fixed and the error small."""
    s = [v[i] + v[i + 8] for i in ti.static(range(8))]
    t = [s[i] + s[i + 4] for i in ti.static(range(4))]
    return (t[0] + t[2]) + (t[1] + t[3])


@ti.func
def lane_max(v):
    """Largest of the 16 lanes."""
    s = [ti.max(v[i], v[i + 8]) for i in ti.static(range(8))]
    t = [ti.max(s[i], s[i + 4]) for i in ti.static(range(4))]
    return ti.max(ti.max(t[0], t[2]), ti.max(t[1], t[3]))


@ti.func
def exp_lanes(x):
    """exp(x) for 16 lanes, relative error below 3e-7 + 8e-8 |x|; x is clamped to [-87, 88].

    2^n is built from its bits and 2^f (|f| <= 1/2) from its Taylor series: `ti.exp` aborts on vectors.
    """
    y = ti.min(ti.max(x, -87.0), 88.0) * 1.4426950408889634
    n = (y + 12582912.0) - 12582912.0  # 1.5 * 2^23: rounds to the nearest integer
    f = y - n
    p = 1.5403530e-4 * f + 1.3333558e-3
    p = p * f + 9.6181291e-3
    p = p * f + 5.5504109e-2
    p = p * f + 2.4022651e-1
    p = p * f + 6.9314718e-1
    p = p * f + 1.0
    power = [ti.bit_cast((ti.cast(n[i], ti.i32) + 127) << 23, ti.f32) for i in ti.static(range(16))]
    return p * f32x16(*power)
