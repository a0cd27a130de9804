"""Quants of two bits as Q2_K and Q3_K store them: 256 in 64 bytes.

Each half of 128 values has 32 bytes; value 32 k + l of a half is the bit pair k of byte l.
"""

import numpy as np

from spqt_ti.formats.scheme import U8Array

__all__ = ["BYTES", "pack", "unpack"]

BYTES = 64
_SHIFTS = np.array([0, 2, 4, 6], np.uint8)[:, None]


def unpack(stored: U8Array) -> U8Array:
    """u8 `[n, 64]` -> quants u8 `[n, 256]`, 0..3."""
    halves = stored.reshape(-1, 2, 1, 32)
    return (halves >> _SHIFTS & np.uint8(3)).reshape(len(stored), 256)


def pack(quants: U8Array) -> U8Array:
    """Quants u8 `[n, 256]`, 0..3 -> u8 `[n, 64]`."""
    return np.bitwise_or.reduce(quants.reshape(-1, 2, 4, 32) << _SHIFTS, axis=2).reshape(len(quants), BYTES)
