"""The Q5_K quantiser for the CPU, byte-identical to `formats.q5_k` (and so to ggml), for `tiles.make_packer`."""

from spqt_ti.backend import ti
from spqt_ti.formats import q5_k
from spqt_ti.kernels.pack.affine import SCRATCH, TILE, make_closest, make_quantise, make_value, store_six_bit_header
from spqt_ti.kernels.pack.tiles import make_packer

__all__ = ["PACKER"]


@ti.func
def store(scratch: ti.template(), here, lane, units, out: ti.template(), at):
    """The header, the top bits, then the low bits of the first `units` pairs of sub-blocks."""
    store_six_bit_header(scratch, here, lane, out, at)
    for i in range(32):
        high = 0
        for j in range(8):
            high |= (ti.cast(scratch[here + TILE + 32 * j + i][lane], ti.i32) >> 4) << j
        out[at + 16 + i] = ti.cast(high, ti.u8)
    for k in range(units):
        for i in range(32):
            a = ti.cast(scratch[here + TILE + k * 64 + i][lane], ti.i32) & 15
            b = ti.cast(scratch[here + TILE + k * 64 + 32 + i][lane], ti.i32) & 15
            out[at + 48 + k * 32 + i] = ti.cast(a | (b << 4), ti.u8)


PACKER = make_packer(
    q5_k.SCHEME,
    SCRATCH,
    make_quantise(q5_k.SEARCH, q5_k.SUB_BLOCK, 63),
    store,
    make_value(q5_k.SUB_BLOCK),
    make_closest(q5_k.SEARCH, q5_k.SUB_BLOCK, 63),
)
