"""The Q4_K quantiser for the CPU, byte-identical to `formats.q4_k` (and so to ggml), for `tiles.make_packer`."""

from spqt_ti.backend import ti
from spqt_ti.formats import q4_k
from spqt_ti.kernels.pack.affine import SCRATCH, TILE, make_closest, make_quantise, make_value, store_six_bit_header
from spqt_ti.kernels.pack.tiles import make_packer

__all__ = ["PACKER"]


@ti.func
def store(scratch: ti.template(), here, lane, units, out: ti.template(), at):
    """The header, then the quants of the first `units` pairs of sub-blocks."""
    store_six_bit_header(scratch, here, lane, out, at)
    for k in range(units):
        for i in range(32):
            a = scratch[here + TILE + k * 64 + i][lane]
            b = scratch[here + TILE + k * 64 + 32 + i][lane]
            out[at + 16 + k * 32 + i] = ti.cast(a + 16.0 * b, ti.u8)


PACKER = make_packer(
    q4_k.SCHEME,
    SCRATCH,
    make_quantise(q4_k.SEARCH, q4_k.SUB_BLOCK, 63),
    store,
    make_value(q4_k.SUB_BLOCK),
    make_closest(q4_k.SEARCH, q4_k.SUB_BLOCK, 63),
)
