"""Quantises matrices of any scheme."""

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats.scheme import Scheme
from spqt_ti.kernels.pack.q4_k import quantize_q4_k

__all__ = ["quantize_matrix"]

_CHUNK_VALUES = 1 << 18  # at a time: temporaries stay in the cache


def quantize_matrix(w: npt.NDArray[np.float32], layout: str, scheme: Scheme, name: str) -> npt.NDArray[np.uint8]:
    """Stored bytes u8 `[nbytes]` of the matrix `w` f32 `[rows, cols]`.

    Raises QuantizationError, which names the tensor, for another dtype or shape, an unknown layout, NaN, infinity, and
    values too large for the scheme.
    """
    if scheme.name == "q4_k":
        return quantize_q4_k(w, layout, name)
    step = max(1, _CHUNK_VALUES // (layouts.BAND * w.shape[1])) * layouts.BAND
    try:
        parts = [layouts.quantize_matrix(w[i : i + step], layout, scheme) for i in range(0, len(w), step)]
    except QuantizationError as error:
        raise QuantizationError(f"tensor {name}.weight: {error}") from error
    return np.concatenate(parts)
