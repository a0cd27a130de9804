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
_SUMS = 16  # where the sums of x over 16 columns each lie, behind x


def make_byte_row_sums(masks: bool, planes: Planes, form: ByteVectors):
    """Build `order_x` and `row_sums` (see row_gemv.py)."""
    multiply_add, _ = make_multiply_add()
    quant_vectors, header_vectors = planes.quant_vectors, planes.header_vectors
    bytes_in_place, byte_vector, scales_of = make_bytes_in_place(form.zero), form.vector, form.make_scales()
    has_minima = form.make_minima is not None
    minima_of = form.make_minima() if form.make_minima is not None else None
    helpers = native.load()
    prefetches = helpers is not None

    @ti.func
    def order_x(x: ti.template(), superblocks, a: ti.template(), base):
        for within in range(superblocks):
            sums = [0.0 for _ in ti.static(range(16))]
            for k in ti.static(range(16)):
                lanes = x.array[x.base + within * X_VECTORS + k]
                if ti.static(masks):
                    lanes = zero_up_to(lanes, x.threshold)
                a[base + within * ROW_VECTORS + k] = lanes * UNIT[k % 4]
                if ti.static(has_minima):
                    sums[k] = lane_sum(lanes)
            if ti.static(has_minima):
                a[base + within * ROW_VECTORS + _SUMS] = f32x16(*sums)

    @ti.func
    def fetch_ahead(m: ti.template(), rows: ti.template(), r: ti.template(), within):
        if ti.static(prefetches):
            ahead = rows.starts[r] + within + rows.ahead
            if within + rows.ahead >= m.superblocks:
                ahead = rows.following[r] + within + rows.ahead - m.superblocks
            vector = m.quants_base + ahead * quant_vectors
            for line in ti.static(range(quant_vectors)):
                address = m.quants_address + (ti.cast(vector + line, ti.i64) << 6)
                helpers.prefetch64(address)

    @ti.func
    def row_sums(m: ti.template(), rows: ti.template(), count: ti.template(), a: ti.template(), base):
        """The products of the `count` Rows with the x at a[base]."""
        totals, offsets = [[f32x16(0.0) for _ in ti.static(range(count))] for _ in ti.static(range(2))]
        for within in range(m.superblocks):
            at = base + within * ROW_VECTORS
            for r in ti.static(range(count)):
                superblock = rows.starts[r] + within
                fetch_ahead(m, rows, r, within)
                quants_at = m.quants_base + quant_vectors * superblock
                headers_at = m.headers_base + header_vectors * superblock
                scales = scales_of(m.headers, headers_at, 1.0)
                if ti.static(has_minima):
                    minima = minima_of(m.headers, headers_at, 1.0)  # type: ignore[misc]
                    multiply_add(offsets[r], minima, a[at + _SUMS])
                for t in ti.static(range(4)):
                    words = byte_vector(m.quants, quants_at, m.headers, headers_at, t)
                    for b in ti.static(range(4)):
                        scaled = a[at + 4 * t + b] * scales[4 * t + b]
                        multiply_add(totals[r], bytes_in_place(words, b), scaled)
        return ti.Vector([lane_sum(totals[r] - offsets[r]) for r in ti.static(range(count))])

    return order_x, row_sums
