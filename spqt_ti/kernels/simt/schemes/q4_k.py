"""Q4_K for GPUs: quants and headers as they are stored. A lane has 32 nibbles, the low ones of two sub-blocks' words
being its first half, the high ones its second.
"""

from spqt_ti.backend import ti
from spqt_ti.formats.scheme import U8Array
from spqt_ti.kernels.shared.words import NIBBLE_UNIT, half, nibbles_in_place
from spqt_ti.kernels.simt.schemes.decoder import Decoder, load_one, one_each, same_entry


def unpack_quants(superblocks: U8Array, parts: int) -> U8Array:
    return superblocks[:, 0, 16 : 16 + 16 * parts]


def unpack_headers(superblocks: U8Array) -> U8Array:
    return superblocks[:, 0, :16]


@ti.func
def step_and_minimum(header: ti.template(), part, half_index: ti.template()):
    """d * scale and dmin * min of the lane's sub-block of this half."""
    sub_block = (part & -2) + half_index
    shift = ti.cast((sub_block & 3) * 8, ti.u32)
    low, high, both = header[1] >> shift, header[2] >> shift, header[3] >> shift
    # Without a branch, which loads would not be moved across.
    scale = ti.select(sub_block >= 4, (both & 15) | ((low >> 2) & 48), low & 63)
    minimum = ti.select(sub_block >= 4, ((both >> 4) & 15) | ((high >> 2) & 48), high & 63)
    return half(header[0]) * ti.cast(scale, ti.f32), half(header[0] >> 16) * ti.cast(minimum, ti.f32)


@ti.func
def packed(words: ti.template(), first: ti.template(), part, half_index: ti.template()):
    return words[first, :]


@ti.func
def first_value(part):
    return (part >> 1) * 64 + (part & 1) * 16


DECODER = Decoder(
    bits=4, loads=1, header_words=4, half_stride=32, has_minimum=True, units=NIBBLE_UNIT, unpack_quants=unpack_quants,
    unpack_headers=unpack_headers, header_entries=one_each, entry=same_entry, load_header=load_one,
    step_and_minimum=step_and_minimum, packed=packed, quant=nibbles_in_place, first_value=first_value,
)  # fmt: skip
