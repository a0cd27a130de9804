"""Arrays in NumPy's .npy form that somebody else may have written: no header is believed before it is compared with the
bytes behind it. NumPy's own reader allocates what a header claims.
"""

from __future__ import annotations

import math
import sys
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_KINDS = "biufU"


def read_array(file: IO[bytes]) -> np.ndarray:
    """The array that a file holds, to its end; ValueError for anything else. Arrays of Python objects are refused."""
    shape, by_column, dtype = _header(file)
    count = math.prod(shape)
    content = file.read()
    if dtype.kind not in _KINDS or any(size < 0 for size in shape) or len(content) != count * dtype.itemsize:
        raise ValueError("it does not hold what its header says")
    if not dtype.itemsize:
        raise ValueError("it holds values of no size")
    values = np.frombuffer(content, dtype)
    characters = values.view(np.dtype(np.uint32).newbyteorder(dtype.byteorder)) if dtype.kind == "U" else values[:0]
    if characters.size and characters.max() > sys.maxunicode:  # Python raises SystemError when it looks at them
        raise ValueError("it holds characters that do not exist")
    return values.reshape(shape, order="F" if by_column else "C").copy()


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"format {version}")
        shape, by_column, dtype = _HEADERS[version](file)
    except Exception as error:  # NumPy has Python's own parser read it: many types, one meaning
        raise ValueError(f"a damaged header ({type(error).__name__})") from error
    return shape, by_column, dtype
