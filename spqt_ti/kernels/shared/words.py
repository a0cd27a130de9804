"""Fields of 32-bit words that every engine decodes in the same way.

No vector types: a word may be a scalar or a vector.
"""

from spqt_ti.backend import ti

INFINITY_BITS = 0x7F800000  # of an f32; a number that has all of them is infinite or NaN


@ti.func
def half(bits):
    """f16 bits (low 16 of a u32) -> f32."""
    return ti.cast(ti.bit_cast(ti.cast(bits & 0xFFFF, ti.u16), ti.f16), ti.f32)


# Weight of a nibble left where it is in a word, at [2 byte + high]; the top one is shifted down instead.
NIBBLE_UNIT = (*(2.0 ** (-4 * k) for k in range(7)), 1.0)


@ti.func
def nibbles_in_place(words, byte: ti.template(), high: ti.template()):
    """One nibble of every lane as f32, divided by NIBBLE_UNIT[2 byte + high]."""
    result = (words >> 28) * 1.0  # the top nibble would be negative as i32
    if ti.static((byte, high) != (3, 1)):
        result = (words & (15 << (8 * byte + 4 * high))) * 1.0
    return result
