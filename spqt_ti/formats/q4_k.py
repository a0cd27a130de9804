"""Q4_K, ggml's 4-bit "k-quant" (llama.cpp), in NumPy: 256 values in 144 bytes, 4.5 bits per weight.

A superblock is `f16 d | f16 dmin | u8 scales[12] | u8 quants[128]` and holds 8 sub-blocks of 32 values. Sub-block `j`
has a 6-bit scale and a 6-bit minimum, and a value is `d * scale_j * q - dmin * min_j` with `q` in 0..15.

The quantiser gives ggml's bytes (`quantize_row_q4_K_ref` without an importance matrix): see affine.py.
"""

import numpy as np

from spqt_ti.formats import affine
from spqt_ti.formats.affine import HEADER_BYTES, Fields
from spqt_ti.formats.fpenv import gradual_underflow
from spqt_ti.formats.scheme import F32Array, Plane, Scheme, U8Array

__all__ = ["BYTES", "SCHEME", "SEARCH", "SUB_BLOCK", "VALUES", "Fields", "dequantize", "pack", "quantize", "unpack"]

VALUES = 256
BYTES = 144
SUB_BLOCK = 32
SEARCH = affine.Search(largest=15, first=-1.0, tries=21)

_SUB_BLOCKS = VALUES // SUB_BLOCK
_CHUNK = 1024  # superblocks at a time: bounds the temporaries to a few MB


# Overflow, division by zero and NaN happen in ggml too (constant, denormal or huge sub-blocks) and are selected away.
@gradual_underflow()
@np.errstate(all="ignore")
def quantize(values: F32Array) -> U8Array:
    """Quantise f32 `[n, 256]` to superblocks u8 `[n, 144]`, byte for byte as ggml does.

    Raises QuantizationError for another dtype or shape, for NaN and infinity, and for values so large that a
    scale does not fit f16 (below about -4e6, above about 6e7): ggml stores an infinite scale, which dequantises to NaN.
    """
    SCHEME.check_values(values)
    out = np.empty((len(values), BYTES), np.uint8)
    for start in range(0, len(values), _CHUNK):
        out[start : start + _CHUNK] = pack(affine.quantize_fields(values[start : start + _CHUNK], SEARCH, "Q4_K"))
    return out


def dequantize(superblocks: U8Array) -> F32Array:
    """Values f32 `[n, 256]` of superblocks u8 `[n, 144]`, bit for bit as ggml computes them."""
    fields = unpack(superblocks)
    return affine.dequantize(fields.steps, fields.offsets, fields.quants)


def unpack(superblocks: U8Array) -> Fields:
    """Split superblocks u8 `[n, 144]` into their fields, with quants 0..15."""
    SCHEME.check_superblocks(superblocks)
    header = affine.unpack_header(superblocks[:, :HEADER_BYTES])
    pairs = superblocks[:, HEADER_BYTES:].reshape(-1, _SUB_BLOCKS // 2, SUB_BLOCK)
    quants = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(-1, VALUES)
    return Fields(header.d, header.dmin, header.scales, header.mins, quants)


def pack(fields: Fields) -> U8Array:
    """Superblocks u8 `[n, 144]` of the fields; the inverse of `unpack`. Scales, minima and quants must be in range."""
    superblocks = np.empty((len(fields.d), BYTES), np.uint8)
    affine.pack_header(fields, superblocks[:, :HEADER_BYTES])
    pairs = fields.quants.reshape(-1, _SUB_BLOCKS // 2, 2, SUB_BLOCK)
    superblocks[:, HEADER_BYTES:] = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, VALUES // 2)
    return superblocks


SCHEME = Scheme("q4_k", VALUES, BYTES, 2 * SUB_BLOCK, (Plane(0, 16), Plane(16, 128, 32)), quantize, dequantize)
