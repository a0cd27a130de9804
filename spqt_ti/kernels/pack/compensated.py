"""Quantises columns of a zigzag matrix one after the other, each with what the ones before it have lost added.

The inner loop of GPTQ (convert/gptq.py) as one launch.

A lane is a row of superblocks, which no other row concerns: so columns follow each other without waiting for anybody.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from spqt_ti.backend import host_view, ndarray, start, ti
from spqt_ti.errors import QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats.layout import BAND
from spqt_ti.formats.scheme import Scheme
from spqt_ti.formats.schemes import SCHEMES
from spqt_ti.kernels.pack.quantize import BACKEND, packer_of
from spqt_ti.kernels.pack.tiles import LANES, Bytes, Floats, Ints, Lanes, lanes

__all__ = ["BATCH", "ColumnQuantizer"]

BATCH = 64  # columns of a launch

F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]


class ColumnQuantizer:
    """Quantises columns of a matrix [rows, cols] into `out`, its stored zigzag bytes u8 [nbytes], up to BATCH at a
    time.
    """

    def __init__(self, out: U8Array, rows: int, cols: int, scheme: Scheme, as_ggml: bool = False) -> None:
        """`as_ggml`: with ggml's search of scales, whatever the scheme has for the least squared error.

        Starts the CPU backend if none is up. QuantizationError for a scheme without kernel: see `supports`.
        """
        self._workers = start(BACKEND).threads
        packer, kernel = packer_of(scheme), _kernel_of(scheme.name, as_ggml)
        if packer is None or kernel is None:
            raise QuantizationError(f"{scheme.label} has no kernel; quantise column by column")
        self._kernel = kernel
        self._out, self._rows, self._cols = out, rows, cols
        self._last = layouts.band_bytes(layouts.band_rows(rows)[-1], scheme)
        self._tiles = -(-rows // (scheme.values * LANES))
        shape = (self._tiles, scheme.values, BATCH)
        self._columns, self._carried = (ndarray(lanes, (np.prod(shape).item(),)) for _ in range(2))
        for array in (self._columns, self._carried):
            host_view(array)[:] = 0
        self._shape = (*shape, LANES)
        self._scratch = ndarray(lanes, (self._workers * packer.scratch,))

    @staticmethod
    def supports(scheme: Scheme) -> bool:
        """Whether a scheme has a kernel."""
        return packer_of(scheme) is not None

    def __call__(
        self, columns: F32Array, carried: F32Array, weights: F32Array, indices: npt.NDArray[np.integer]
    ) -> F32Array | None:
        """What columns `columns` f32 [n, rows] lose, f32 [n, rows]; None where NumPy has to quantise them, because the
        kernel cannot do a superblock exactly (see quantize.py).

        `carried` f32 [n, rows]: what earlier columns add to their targets. `weights` f32 [n, n]: what the loss of a
        column, first index, adds to a later one's target. `indices` [n]: their numbers in the matrix.
        """
        count = len(columns)
        self._put(self._columns, columns)
        self._put(self._carried, carried)
        padded = np.zeros((BATCH, BATCH), np.float32)
        padded[:count, :count] = weights
        numbers = np.array([0, self._tiles, count, self._rows, self._cols, self._last, 0], np.int32)
        self._kernel(
            self._columns, self._carried, padded.reshape(-1), indices.astype(np.int32), self._out, self._scratch,
            numbers, self._workers,
        )  # fmt: skip
        ti.sync()
        return None if numbers[6] else self._losses(count)

    def _put(self, array: ti.Ndarray, values: F32Array) -> None:
        """Columns f32 [n, rows] to the lanes of their rows of superblocks."""
        count = len(values)
        tiles, per_superblock, _, _ = self._shape
        padded = np.zeros((count, tiles * LANES * per_superblock), np.float32)
        padded[:, : self._rows] = values
        view = host_view(array).reshape(self._shape)
        view[:, :, :count] = padded.reshape(count, tiles, LANES, per_superblock).transpose(1, 3, 0, 2)

    def _losses(self, count: int) -> F32Array:
        """The first `count` columns from their lanes, f32 [count, rows]."""
        view = host_view(self._columns).reshape(self._shape)[:, :, :count]
        return view.transpose(2, 0, 3, 1).reshape(count, -1)[:, : self._rows]


@functools.cache
def _kernel_of(name: str, as_ggml: bool) -> Callable[..., Any] | None:
    packer = packer_of(SCHEMES[name])
    if packer is None:
        return None
    scheme, scratch_vectors = packer.scheme, packer.scratch
    quantise = packer.quantise if as_ggml else packer.closest
    store, value = packer.store, packer.value
    values, unit, size = scheme.values, scheme.unit, scheme.bytes
    per_column = BAND // values
    column = per_column * size

    @ti.func
    def load(
        columns: ti.template(), carried: ti.template(), weights: ti.template(), scratch: ti.template(), here, first, j
    ):  # fmt: skip
        """Targets of column `j` into the tile; four values at a time, because an addition waits for the one before."""
        for quad in range(values // 4):
            at = first + quad * (4 * BATCH)
            a = columns[at + j] + carried[at + j]
            b = columns[at + BATCH + j] + carried[at + BATCH + j]
            c = columns[at + 2 * BATCH + j] + carried[at + 2 * BATCH + j]
            d = columns[at + 3 * BATCH + j] + carried[at + 3 * BATCH + j]
            for i in range(j):
                weight = weights[i * BATCH + j]
                a += columns[at + i] * weight
                b += columns[at + BATCH + i] * weight
                c += columns[at + 2 * BATCH + i] * weight
                d += columns[at + 3 * BATCH + i] * weight
            scratch[here + quad * 4] = a
            scratch[here + quad * 4 + 1] = b
            scratch[here + quad * 4 + 2] = c
            scratch[here + quad * 4 + 3] = d

    @ti.kernel
    def compensate(
        columns: Lanes, carried: Lanes, weights: Floats, indices: Ints, out: Bytes, scratch: Lanes, numbers: Ints,
        workers: ti.i32,
    ):  # fmt: skip
        """Bytes of the columns into `out`; `columns` f32 [tiles, values, BATCH, 16] become what they have lost.

        `carried`, in the same order: what earlier columns add to the targets. `weights` [BATCH, BATCH]: what the
        loss of a column, first index, adds to another's target. `indices`: their numbers in the matrix. `numbers`: a
        counter from 0, tiles, columns here, rows, columns of the matrix, bytes of a column of the last band, and what
        becomes 1 where a superblock has to be quantised by NumPy.
        """
        ti.loop_config(block_dim=1)
        for worker in range(workers):
            here = worker * scratch_vectors
            rows = numbers[3]
            cols = numbers[4]
            superblocks = (rows + values - 1) // values  # in a column
            tile = ti.atomic_add(numbers[0], 1)
            while tile < numbers[1]:
                first = tile * (values * BATCH)
                used = ti.min(LANES, superblocks - tile * LANES)
                count = lanes(0.0)  # rows of each lane's superblock
                for lane in ti.static(range(LANES)):
                    count[lane] = ti.cast(rows - (tile * LANES + lane) * values, ti.f32)
                for j in range(numbers[2]):
                    load(columns, carried, weights, scratch, here, first, j)
                    bad = quantise(scratch, here)
                    for lane in range(used):
                        row = tile * LANES + lane  # of superblocks
                        band = row // per_column
                        units = (ti.min(values, rows - row * values) + unit - 1) // unit
                        width = column
                        if (band + 1) * BAND > rows:
                            width = numbers[5]
                        at = band * cols * column + indices[j] * width + (row - band * per_column) * size
                        store(scratch, here, lane, units, out, at)
                        if bad[lane] > 0.0:
                            numbers[6] = 1
                    for k in range(values):
                        at = first + k * BATCH + j
                        loss = columns[at] - value(scratch, here, k)
                        columns[at] = ti.select(ti.cast(k, ti.f32) < count, loss, lanes(0.0))
                tile = ti.atomic_add(numbers[0], 1)

    return compensate
