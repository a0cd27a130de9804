"""The Q2_K quantiser for the CPU, byte-identical to `formats.q2_k` (and so to ggml), for `tiles.make_packer`."""

from spqt_ti.backend import ti
from spqt_ti.formats import q2_k
from spqt_ti.kernels.pack.affine import DMIN, LOW, SCALE, SCRATCH, TILE, D, make_closest, make_quantise, make_value
from spqt_ti.kernels.pack.tiles import make_packer, store_half, store_pairs

__all__ = ["PACKER"]


@ti.func
def store(scratch: ti.template(), here, lane, units, out: ti.template(), at):
    """Scales and minima, then the quants of the first `units` halves, then d and dmin."""
    for j in range(8 * units):
        scale = ti.cast(scratch[here + SCALE + j][lane], ti.i32)
        low = ti.cast(scratch[here + LOW + j][lane], ti.i32)
        out[at + j] = ti.cast(scale | (low << 4), ti.u8)
    store_pairs(scratch, here + TILE, lane, units, out, at + 8 * units)
    store_half(out, at + 40 * units, scratch[here + D][lane])
    store_half(out, at + 40 * units + 2, scratch[here + DMIN][lane])


PACKER = make_packer(
    q2_k.SCHEME,
    SCRATCH,
    make_quantise(q2_k.SEARCH, q2_k.SUB_BLOCK, 15),
    store,
    make_value(q2_k.SUB_BLOCK),
    make_closest(q2_k.SEARCH, q2_k.SUB_BLOCK, 15),
)
