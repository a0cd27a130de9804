"""The inner loop of the row-layout GEMV for schemes that are vectors of bytes (schemes/byte_vectors.py), in f32.

Vector k of a superblock is columns 16 k .. 16 k + 15 in order, so x needs no other order.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.multiply_add import make_multiply_add
from spqt_ti.kernels.cpu.row_layout import ROW_VECTORS, X_VECTORS, zero_up_to
from spqt_ti.kernels.cpu.schemes.byte_vectors import UNIT, make_bytes_in_place
from spqt_ti.kernels.cpu.schemes.decoder import ByteVectors
from spqt_ti.kernels.cpu.vectors import f32x16, lane_sum
from spqt_ti.kernels.shared.geometry import Planes

AHEAD = 8  # superblocks of each row


def make_byte_row_sums(masks: bool, planes: Planes, form: ByteVectors):
    """Build `order_x` and `row_sums` (see row_gemv.py)."""
    multiply_add, _ = make_multiply_add()
    quant_vectors, header_vectors = planes.quant_vectors, planes.header_vectors
    bytes_in_place, byte_vector, scales_of = make_bytes_in_place(form.zero), form.vector, form.make_scales()
    helpers = native.load()
    prefetches = helpers is not None

    @ti.func
    def order_x(x: ti.template(), superblocks, a: ti.template(), base):
        for within in range(superblocks):
            for k in ti.static(range(16)):
                lanes = x.array[x.base + within * X_VECTORS + k]
                if ti.static(masks):
                    lanes = zero_up_to(lanes, x.threshold)
                a[base + within * ROW_VECTORS + k] = lanes * UNIT[k % 4]

    @ti.func
    def fetch_ahead(m: ti.template(), superblock):
        if ti.static(prefetches):
            vector = m.quants_base + (superblock + AHEAD) * quant_vectors
            for line in ti.static(range(quant_vectors)):
                address = m.quants_address + (ti.cast(vector + line, ti.i64) << 6)
                helpers.prefetch64(address)

    @ti.func
    def row_sums(m: ti.template(), start, count: ti.template(), a: ti.template(), base):
        """The products of `count` rows, whose superblocks begin at `start`, with the x at a[base]."""
        totals = [f32x16(0.0) for _ in ti.static(range(count))]
        for within in range(m.superblocks):
            at = base + within * ROW_VECTORS
            for r in ti.static(range(count)):
                superblock = start + r * m.superblocks + within
                fetch_ahead(m, superblock)
                scales = scales_of(m.headers, m.headers_base + header_vectors * superblock, 1.0)
                for t in ti.static(range(4)):
                    words = byte_vector(m.quants, m.quants_base + quant_vectors * superblock, t)
                    for b in ti.static(range(4)):
                        scaled = a[at + 4 * t + b] * scales[4 * t + b]
                        multiply_add(totals[r], bytes_in_place(words, b), scaled)
        return ti.Vector([lane_sum(totals[r]) for r in ti.static(range(count))])

    return order_x, row_sums
