"""Quantises matrices on the CPU: a kernel per scheme, in chunks, and NumPy for the superblocks that a kernel leaves.

A kernel flags, and leaves to `formats`, what it cannot do exactly: superblocks with values so small that results become
denormal (Taichi's workers flush those to zero) or that leave ggml's rounding range; and what has to be refused: NaN,
infinity, a scale that does not fit f16. Ordinary weights are hardly ever flagged.

A kernel is a module of the scheme's name with its PACKER. A scheme without one is quantised by its own NumPy, which
gives the same bytes and takes longer.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from spqt_ti.backend import ndarray, start
from spqt_ti.errors import QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats.scheme import Scheme
from spqt_ti.kernels.pack.tiles import Packer, lanes
from spqt_ti.kernels.scheme_modules import find_part

__all__ = ["BACKEND", "packer_of", "quantize_matrix"]

BACKEND = "cpu"  # that quantising needs
CHUNK_WEIGHTS = 1 << 22  # per launch, and at least a band: bounds copies and keeps indices in 32 bits
REDO_SUPERBLOCKS = 4096


def packer_of(scheme: Scheme) -> Packer | None:
    """The kernel of a scheme, where it has one."""
    packer: Packer | None = find_part("spqt_ti.kernels.pack", scheme.name, "PACKER")
    return packer


def quantize_matrix(
    w: npt.NDArray[np.float32], layout: str, scheme: Scheme, name: str = "tensor"
) -> npt.NDArray[np.uint8]:
    """Stored bytes u8 `[nbytes]` of the matrix `w` f32 `[rows, cols]` in `layout` ("zigzag" or "row").

    Starts the CPU backend if none is up. Raises QuantizationError, which names the tensor, for another dtype or shape,
    an unknown layout, NaN, infinity, and values too large for the scheme.
    """
    try:
        layouts.check_matrix(w, layout)
        packer = packer_of(scheme)
        if packer is not None:
            return _quantize(w, layout, packer)
        return np.concatenate([layouts.quantize_matrix(part, layout, scheme) for part in _chunks(w)])
    except QuantizationError as error:
        raise QuantizationError(f"{name}: {error}") from error


def _quantize(w: npt.NDArray[np.float32], layout: str, packer: Packer) -> npt.NDArray[np.uint8]:
    """All chunks through the kernel, then the flagged superblocks through NumPy."""
    workers, scheme = start(BACKEND).threads, packer.scheme
    scratch = ndarray(lanes, (workers * packer.scratch,))
    rows, cols = w.shape
    if cols > CHUNK_WEIGHTS:
        raise QuantizationError(f"more than {CHUNK_WEIGHTS} columns are not supported, and there are {cols}")
    out = np.empty(layouts.nbytes(rows, cols, layout, scheme), np.uint8)
    flags = np.zeros(_superblocks(rows, cols, layout, scheme), np.uint8)
    done = superblocks_done = 0
    for part in _chunks(w):
        size, superblocks = (of(len(part), cols, layout, scheme) for of in (layouts.nbytes, _superblocks))
        last = layouts.band_bytes(layouts.band_rows(len(part))[-1], scheme)
        packer.launch(
            part.reshape(-1),
            out[done : done + size],
            flags[superblocks_done : superblocks_done + superblocks],
            scratch,
            np.array([0, superblocks, *part.shape, layout == "zigzag", last], np.int32),
            workers,
        )
        done, superblocks_done = done + size, superblocks_done + superblocks
    flagged = np.flatnonzero(flags)
    for start_at in range(0, len(flagged), REDO_SUPERBLOCKS):
        _redo(w, out, flagged[start_at : start_at + REDO_SUPERBLOCKS], layout, scheme)
    return out


def _chunks(w: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    """The matrix in pieces of whole bands, contiguous."""
    step = max(1, CHUNK_WEIGHTS // (w.shape[1] * layouts.BAND)) * layouts.BAND
    for first in range(0, len(w), step):
        yield np.ascontiguousarray(w[first : first + step])


def _superblocks(rows: int, cols: int, layout: str, scheme: Scheme) -> int:
    """Superblocks that are stored, whole or cut. In zigzag layout, number `row of superblocks * cols + column`."""
    return cols * -(-rows // scheme.values) if layout == "zigzag" else rows * -(-cols // scheme.values)


def _redo(
    w: npt.NDArray[np.float32],
    out: npt.NDArray[np.uint8],
    numbers: npt.NDArray[np.intp],
    layout: str,
    scheme: Scheme,
) -> None:
    """Quantise the superblocks of these numbers with NumPy, into their entries in `out`."""
    rows, cols = w.shape
    within = np.arange(scheme.values)
    if layout == "zigzag":
        row, col = np.divmod(numbers[:, None], cols)
        index, limit = row * scheme.values + within, rows
        values = w[np.minimum(index, limit - 1), col]
    else:
        row, col = np.divmod(numbers[:, None], -(-cols // scheme.values))
        index, limit = col * scheme.values + within, cols
        values = w[row, np.minimum(index, limit - 1)]
    values[index >= limit] = 0
    superblocks = scheme.quantize(values)
    if layout == "row":
        out.reshape(-1, scheme.bytes)[numbers] = superblocks
        return
    per_column = layouts.BAND // scheme.values
    band, part = np.divmod(row, per_column)
    whole, last = per_column * scheme.bytes, layouts.band_bytes(layouts.band_rows(rows)[-1], scheme)
    width = np.where((band + 1) * layouts.BAND > rows, last, whole)
    at = band * (cols * whole) + col * width + part * scheme.bytes
    cut = (row[:, 0] + 1) * scheme.values > rows
    out[at[~cut] + np.arange(scheme.bytes)] = superblocks[~cut]
    if cut.any():
        kept = scheme.kept(rows % scheme.values)
        out[at[cut] + np.arange(kept.size)] = superblocks[cut][:, kept]
