"""What a weight scheme is: how many values a superblock holds, in which bytes, and how to make and read it.

A scheme knows nothing of matrices: formats/layout.py arranges superblocks of any scheme.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import QuantizationError

__all__ = ["F32Array", "Plane", "Scheme", "U8Array"]

F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Plane:
    """A field of a superblock: `size` bytes from byte `start`.

    `per_unit`: bytes that belong to each unit of values in order; 0 where the whole field belongs to all of them.
    """

    start: int
    size: int
    per_unit: int = 0


@dataclass(frozen=True)
class Scheme:
    """A way to store weights, one of ggml's.

    `values` weights take `bytes` bytes, a superblock. Its last values can be cut off in whole units of `unit` values,
    which share bytes; `planes` says which bytes a unit needs. `quantize` f32 [n, values] -> u8 [n, bytes] and
    `dequantize` u8 [n, bytes] -> f32 [n, values] give ggml's bytes and values. QuantizationError for another dtype or
    shape, NaN, infinity, and values that are too large for the scheme.
    """

    name: str
    values: int
    bytes: int
    unit: int
    planes: tuple[Plane, ...]
    quantize: Callable[[F32Array], U8Array]
    dequantize: Callable[[U8Array], F32Array]

    def __str__(self) -> str:
        return self.name

    @property
    def label(self) -> str:
        """ggml's spelling, "Q4_K"."""
        return self.name.upper()

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of a whole superblock."""
        return self.bytes * 8 / self.values

    def kept(self, count: int) -> npt.NDArray[np.intp]:
        """Indices of the bytes that the first `count` values (1 to `values`) of a superblock need, ascending."""
        units = -(-count // self.unit)
        parts = [
            np.arange(plane.start, plane.start + (units * plane.per_unit if plane.per_unit else plane.size))
            for plane in self.planes
        ]
        return np.concatenate(parts)

    def check_values(self, values: npt.NDArray[np.generic]) -> None:
        """QuantizationError unless `values` is f32 [n, values] without NaN and infinity."""
        self._check(values, np.float32, self.values)
        if not np.isfinite(values).all():
            raise QuantizationError("NaN or infinity in values to quantise")

    def check_superblocks(self, superblocks: npt.NDArray[np.generic]) -> None:
        """QuantizationError unless `superblocks` is u8 [n, bytes]."""
        self._check(superblocks, np.uint8, self.bytes)

    def _check(self, array: npt.NDArray[np.generic], dtype: npt.DTypeLike, width: int) -> None:
        if array.dtype != dtype or array.ndim != 2 or array.shape[1] != width:
            wanted = f"{np.dtype(dtype)} [n, {width}]"
            raise QuantizationError(f"{self.label} takes an array {wanted}, not {array.dtype} {list(array.shape)}")
