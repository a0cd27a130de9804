"""Q2_K, ggml's 2-bit "k-quant" (llama.cpp), in NumPy: 256 values in 84 bytes, 2.625 bits per weight.

A superblock is `u8 scales[16] | u8 quants[64] | f16 d | f16 dmin` and holds 16 sub-blocks of 16 values. Byte `j` of the
scales has a 4-bit scale and, above it, a 4-bit minimum; a value is `d * scale_j * q - dmin * min_j` with `q` in 0..3.
pairs.py has the order of quants.

The quantiser gives ggml's bytes (`quantize_row_q2_K_ref` without an importance matrix): see affine.py.
"""

import numpy as np

from spqt_ti.errors import QuantizationError
from spqt_ti.formats import affine, pairs
from spqt_ti.formats.affine import Fields
from spqt_ti.formats.fpenv import gradual_underflow
from spqt_ti.formats.scheme import F32Array, Plane, Scheme, U8Array

__all__ = ["BYTES", "SCHEME", "SEARCH", "SUB_BLOCK", "VALUES", "Fields", "dequantize", "pack", "quantize", "unpack"]

VALUES = 256
BYTES = 84
SUB_BLOCK = 16
SEARCH = affine.Search(largest=3, first=-0.5, tries=16, absolute=True)

_SUB_BLOCKS = VALUES // SUB_BLOCK
_QUANTS, _D = _SUB_BLOCKS, _SUB_BLOCKS + pairs.BYTES  # where these fields begin
_LARGEST = 15  # scale or minimum
_NIBBLE, _FOUR = np.uint8(15), np.uint8(4)
_CHUNK = 1024  # superblocks at a time: bounds the temporaries to a few MB


def quantize(values: F32Array) -> U8Array:
    """Quantise f32 `[n, 256]` to superblocks u8 `[n, 84]`, byte for byte as ggml does.

    Raises QuantizationError for another dtype or shape, for NaN and infinity, and for values so large that a scale does
    not fit f16.
    """
    SCHEME.check_values(values)
    out = np.empty((len(values), BYTES), np.uint8)
    for start in range(0, len(values), _CHUNK):
        out[start : start + _CHUNK] = pack(_quantize_fields(values[start : start + _CHUNK]))
    return out


def dequantize(superblocks: U8Array) -> F32Array:
    """Values f32 `[n, 256]` of superblocks u8 `[n, 84]`, bit for bit as ggml computes them."""
    fields = unpack(superblocks)
    return affine.dequantize(fields.steps, fields.offsets, fields.quants)


def unpack(superblocks: U8Array) -> Fields:
    """Split superblocks u8 `[n, 84]` into their fields: scales and minima u8 `[n, 16]` (0..15), quants 0..3."""
    SCHEME.check_superblocks(superblocks)
    d = np.ascontiguousarray(superblocks[:, _D:]).view(np.float16)
    scales = superblocks[:, :_QUANTS]
    return Fields(d[:, 0], d[:, 1], scales & _NIBBLE, scales >> _FOUR, pairs.unpack(superblocks[:, _QUANTS:_D]))


def pack(fields: Fields) -> U8Array:
    """Superblocks u8 `[n, 84]` of the fields; the inverse of `unpack`. Scales, minima and quants must be in range."""
    superblocks = np.empty((len(fields.d), BYTES), np.uint8)
    superblocks[:, :_QUANTS] = fields.scales | fields.mins << 4
    superblocks[:, _QUANTS:_D] = pairs.pack(fields.quants)
    superblocks[:, _D:] = np.stack([fields.d, fields.dmin], axis=1).astype(np.float16).view(np.uint8)
    return superblocks


# Overflow, division by zero and NaN happen in ggml too (constant, denormal or huge sub-blocks) and are selected away.
@gradual_underflow()
@np.errstate(all="ignore")
def _quantize_fields(values: F32Array) -> Fields:
    """The search of each sub-block, then 4-bit scales and minima per superblock, then the final quants."""
    n = len(values)
    x = np.ascontiguousarray(values.reshape(n * _SUB_BLOCKS, SUB_BLOCK).T)  # [16, n * 16]
    scales, minima, searched = affine.search(x, np.abs(x), SEARCH)
    d, scale = affine.multiples(scales.reshape(n, _SUB_BLOCKS), _LARGEST)
    dmin, low = affine.multiples(minima.reshape(n, _SUB_BLOCKS), _LARGEST)
    if not (np.isfinite(d).all() and np.isfinite(dmin).all()):
        raise QuantizationError("values too large for Q2_K: a scale exceeds f16's 65504")
    both = scale | low << 4  # in ggml's byte, into which a negative scale spreads
    header = affine.Header(d, dmin, both & _NIBBLE, both >> _FOUR)
    quants = affine.requantize(x, header.steps.reshape(-1), header.offsets.reshape(-1), searched, SEARCH.largest)
    return Fields(d, dmin, header.scales, header.mins, quants.T.reshape(n, VALUES).astype(np.uint8))


SCHEME = Scheme(
    "q2_k", VALUES, BYTES, 128, (Plane(0, _QUANTS, 8), Plane(_QUANTS, pairs.BYTES, 32), Plane(_D, 4)), quantize,
    dequantize,
)  # fmt: skip
