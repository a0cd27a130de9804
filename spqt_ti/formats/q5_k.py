"""Q5_K, ggml's 5-bit "k-quant" (llama.cpp), in NumPy: 256 values in 176 bytes, 5.5 bits per weight.

A superblock is Q4_K's with a plane of fifth bits: `f16 d | f16 dmin | u8 scales[12] | u8 high[32] | u8 quants[128]`.
A value is `d * scale_j * q - dmin * min_j` with `q` in 0..31; bit `j` of `high[l]` is the top bit of value `l` of
sub-block `j`.

The quantiser gives ggml's bytes (`quantize_row_q5_K_ref` without an importance matrix): see affine.py.
"""

import numpy as np

from spqt_ti.formats import affine
from spqt_ti.formats.affine import HEADER_BYTES, Fields
from spqt_ti.formats.fpenv import gradual_underflow
from spqt_ti.formats.scheme import F32Array, Plane, Scheme, U8Array

__all__ = ["BYTES", "SCHEME", "SEARCH", "SUB_BLOCK", "VALUES", "Fields", "dequantize", "pack", "quantize", "unpack"]

VALUES = 256
BYTES = 176
SUB_BLOCK = 32
SEARCH = affine.Search(largest=31, first=-0.5, tries=16)

_SUB_BLOCKS = VALUES // SUB_BLOCK
_QUANTS = HEADER_BYTES + SUB_BLOCK  # where the low bits begin
_CHUNK = 1024  # superblocks at a time: bounds the temporaries to a few MB
_BITS = np.arange(_SUB_BLOCKS, dtype=np.uint8)[:, None]  # of a byte of `high`, by sub-block


# Overflow, division by zero and NaN happen in ggml too (constant, denormal or huge sub-blocks) and are selected away.
@gradual_underflow()
@np.errstate(all="ignore")
def quantize(values: F32Array) -> U8Array:
    """Quantise f32 `[n, 256]` to superblocks u8 `[n, 176]`, byte for byte as ggml does.

    Raises QuantizationError for another dtype or shape, for NaN and infinity, and for values so large that a scale does
    not fit f16.
    """
    SCHEME.check_values(values)
    out = np.empty((len(values), BYTES), np.uint8)
    for start in range(0, len(values), _CHUNK):
        out[start : start + _CHUNK] = pack(affine.quantize_fields(values[start : start + _CHUNK], SEARCH, "Q5_K"))
    return out


def dequantize(superblocks: U8Array) -> F32Array:
    """Values f32 `[n, 256]` of superblocks u8 `[n, 176]`, bit for bit as ggml computes them."""
    fields = unpack(superblocks)
    return affine.dequantize(fields.steps, fields.offsets, fields.quants)


def unpack(superblocks: U8Array) -> Fields:
    """Split superblocks u8 `[n, 176]` into their fields, with quants 0..31."""
    SCHEME.check_superblocks(superblocks)
    header = affine.unpack_header(superblocks[:, :HEADER_BYTES])
    pairs = superblocks[:, _QUANTS:].reshape(-1, _SUB_BLOCKS // 2, SUB_BLOCK)
    low = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(-1, _SUB_BLOCKS, SUB_BLOCK)
    high = superblocks[:, None, HEADER_BYTES:_QUANTS] >> _BITS & 1
    return Fields(header.d, header.dmin, header.scales, header.mins, (low | high << 4).reshape(-1, VALUES))


def pack(fields: Fields) -> U8Array:
    """Superblocks u8 `[n, 176]` of the fields; the inverse of `unpack`. Scales, minima and quants must be in range."""
    superblocks = np.empty((len(fields.d), BYTES), np.uint8)
    affine.pack_header(fields, superblocks[:, :HEADER_BYTES])
    quants = fields.quants.reshape(-1, _SUB_BLOCKS, SUB_BLOCK)
    superblocks[:, HEADER_BYTES:_QUANTS] = np.bitwise_or.reduce(quants >> 4 << _BITS, axis=1)
    low = quants & 15
    superblocks[:, _QUANTS:] = (low[:, 0::2] | low[:, 1::2] << 4).reshape(-1, VALUES // 2)
    return superblocks


SCHEME = Scheme(
    "q5_k", VALUES, BYTES, 2 * SUB_BLOCK, (Plane(0, HEADER_BYTES), Plane(HEADER_BYTES, 32), Plane(_QUANTS, 128, 32)),
    quantize, dequantize,
)  # fmt: skip
