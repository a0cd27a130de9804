"""Vectors of bytes (byte_vectors.py) in 16 bits: what a tile of active columns adds to the sums of up to four bands,
with AVX-512 VNNI or AVX2.

x times a scale is rounded to 16 bits; a step is 1/32639 of the largest of a sub-block in a tile of columns. One
instruction multiplies the bytes of four columns and 16 rows by the high bytes of these products, another by the low
ones. `zero` is subtracted in whole numbers. What rounding leaves over is known, and made good for the mean of a byte.

sums[4 t + k], lane 4 m + i, has row 64 t + 16 i + 4 m + k. Behind the sums of a quad lies what is subtracted of each 16
rows of a band, a vector per band.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.arguments import Sums
from spqt_ti.kernels.cpu.multiply_add import make_multiply_add
from spqt_ti.kernels.cpu.schemes.decoder import ByteVectors
from spqt_ti.kernels.cpu.tile_sums import QUAD_BANDS, SCALES_AT, TILE_COLUMNS
from spqt_ti.kernels.cpu.vectors import f32x16, i32x16, u32x16, value
from spqt_ti.kernels.shared.geometry import Planes

_ROUND = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer in the mantissa
_ROUND_BITS = 0x4B400000
_LARGEST = 32639.0  # 127 * 256 + 127: both bytes of a product are signed
_STEP, _TOTAL = TILE_COLUMNS, TILE_COLUMNS + 1  # of the scratch, behind the products of the tile's columns


def make_byte_tile(form: ByteVectors, planes: Planes, fetch):
    """Build the ti.funcs `add_tile` and `write_rows` (see tile_sums.make_add_tile)."""
    multiply_add, _ = make_multiply_add()
    native16 = native.load_16_bits()
    quant_vectors, header_vectors = planes.quant_vectors, planes.header_vectors
    byte_vector, scales_of, zero, mean = form.vector, form.make_scales(), form.zero, form.mean
    has_minima = form.make_minima is not None
    minima_of = form.make_minima() if form.make_minima is not None else None

    @ti.func
    def scale_inputs(
        panel: ti.template(), band, inputs: ti.template(), low, high, a: ti.template(), spare, offsets: ti.template()
    ):  # fmt: skip
        """x scale of every column to a[spare...], zeros up to whole fours; their step. Minima go to the offsets."""
        largest = f32x16(1e-30)
        for j in range(low, high):
            column = inputs.active[j]
            headers_at = panel.headers_from + header_vectors * (column * panel.height + band)
            x = value(inputs.x, inputs.x_base * 16 + column)
            scaled = scales_of(panel.headers, headers_at, x)
            if ti.static(has_minima):
                offsets += minima_of(panel.headers, headers_at, x)  # type: ignore[misc]
            native16.widen(largest, scaled)  # not `ti.max`, which drops NaN
            a[spare + j - low] = scaled
        for j in range(high - low, (high - low + 3) // 4 * 4):
            a[spare + j] = f32x16(0.0)
        a[spare + _STEP] = largest * (1.0 / _LARGEST)

    @ti.func
    def round_scales(count, a: ti.template(), spare, workspace, offsets: ti.template()):
        """The products of fours of columns as bytes to the workspace, first high, then low ones; their total."""
        step = a[spare + _STEP]
        inverse = 1.0 / step
        total = i32x16(0)
        exact = f32x16(0.0)
        scales_at = workspace + SCALES_AT
        for four in range((count + 3) // 4):
            numbers = [i32x16(0) for _ in ti.static(range(4))]
            for c in ti.static(range(4)):
                scaled = a[spare + 4 * four + c]
                exact += scaled
                rounded = scaled * inverse
                rounded += _ROUND
                native16.bits_of(rounded, numbers[c])
                numbers[c] = numbers[c] - _ROUND_BITS
                total += numbers[c]
            one = (numbers[0] & 65535) | (numbers[1] << 16)
            two = (numbers[2] & 65535) | (numbers[3] << 16)
            high_bytes, low_bytes = [i32x16(0) for _ in ti.static(range(2))]
            native16.split_bytes(one, two, high_bytes, low_bytes)
            native16.store64(scales_at, high_bytes)
            scales_at += 64
            native16.store64(scales_at, low_bytes)
            scales_at += 64
        bits = f32x16(0.0)
        native16.float_of(total, bits)
        a[spare + _TOTAL] = bits
        if ti.static(has_minima):
            offsets += ((total * 1.0) * step - exact) * mean

    @ti.func
    def add_rows(
        panel: ti.template(), band, inputs: ti.template(), low, high, sums: ti.template(), workspace,
        pair: ti.template(), fetch_at: ti.template(), fetch_last,
    ):  # fmt: skip
        """Vectors 2 pair and 2 pair + 1 of every superblock, times the rounded products."""
        lanes = [i32x16(*[4 * (2 * pair + v) + i % 4 for i in range(16)]) for v in ti.static(range(2))]
        highs, lows = [[i32x16(0) for _ in ti.static(range(8))] for _ in ti.static(range(2))]
        scales_at = workspace + SCALES_AT
        for four in range((high - low + 3) // 4):
            native16.not_unrolled()
            for _ in ti.static(range(2)):
                fetch(ti.min(fetch_at, fetch_last))
                fetch_at += 8
            words = [u32x16(0) for _ in ti.static(range(8))]
            for c in ti.static(range(4)):
                entry = inputs.active[ti.min(low + 4 * four + c, high - 1)] * panel.height + band
                quants_at = panel.quants_from + quant_vectors * entry
                headers_at = panel.headers_from + header_vectors * entry
                for v in ti.static(range(2)):
                    words[4 * v + c] = byte_vector(panel.quants, quants_at, panel.headers, headers_at, 2 * pair + v)
            high_bytes, low_bytes = [i32x16(0) for _ in ti.static(range(2))]
            native16.load64(scales_at, high_bytes)
            scales_at += 64
            native16.load64(scales_at, low_bytes)
            scales_at += 64
            for v in ti.static(range(2)):
                parts = [u32x16(0) for _ in ti.static(range(4))]
                native16.four_columns(
                    words[4 * v], words[4 * v + 1], words[4 * v + 2], words[4 * v + 3], parts[0], parts[1], parts[2],
                    parts[3],
                )  # fmt: skip
                high_scale, low_scale = [i32x16(0) for _ in ti.static(range(2))]
                native16.pick(high_bytes, lanes[v], high_scale)
                native16.pick(low_bytes, lanes[v], low_scale)
                for k in ti.static(range(4)):
                    native16.dot4(highs[4 * v + k], parts[k], high_scale)
                    native16.dot4(lows[4 * v + k], parts[k], low_scale)
        totals = i32x16(0)
        bits = sums.a[sums.scratch + _TOTAL]
        native16.bits_of(bits, totals)
        steps = sums.a[sums.scratch + _STEP]
        for v in ti.static(range(2)):
            zeros = i32x16(0)
            native16.pick(totals, lanes[v], zeros)
            step = f32x16(*[steps[4 * (2 * pair + v) + i % 4] for i in ti.static(range(16))])
            for k in ti.static(range(4)):
                at = sums.sums + 4 * (2 * pair + v) + k
                total = sums.a[at]
                multiply_add(total, (highs[4 * v + k] * 256 + lows[4 * v + k] - zeros * zero) * 1.0, step)
                sums.a[at] = total

    @ti.func
    def add_tile(
        panel: ti.template(), first, bands, inputs: ti.template(), low, high, quad: ti.template(), workspace
    ):  # fmt: skip
        fetch_at = workspace
        fetch_last = workspace + (ti.cast((high - low) * bands - 1, ti.i64) << 3)
        for band in range(bands):
            offsets_at = quad.sums + 16 * QUAD_BANDS + band
            offsets = quad.a[offsets_at]
            scale_inputs(panel, first + band, inputs, low, high, quad.a, quad.scratch, offsets)
            round_scales(high - low, quad.a, quad.scratch, workspace, offsets)
            quad.a[offsets_at] = offsets
            band_sums = quad.sums + 16 * band
            for pair in ti.static(range(2)):
                add_rows(
                    panel, first + band, inputs, low, high, ti.static(Sums(quad.a, band_sums, quad.scratch)), workspace,
                    pair, fetch_at, fetch_last,
                )  # fmt: skip

    @ti.func
    def write_rows(a: ti.template(), sums_at, band, out):
        for t in ti.static(range(4)):
            sums = [a[sums_at + 16 * band + 4 * t + k] for k in ti.static(range(4))]
            for i in ti.static(range(4)):
                rows = f32x16(*[sums[r % 4][4 * (r // 4) + i] for r in ti.static(range(16))])
                if ti.static(has_minima):
                    rows = rows - f32x16(a[sums_at + 16 * QUAD_BANDS + band][4 * t + i])
                a[out + 4 * t + i] = rows

    return add_tile, write_rows
