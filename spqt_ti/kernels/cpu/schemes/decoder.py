"""What a weight scheme has to bring along for the zigzag kernels of the CPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from spqt_ti.formats.scheme import Scheme
from spqt_ti.kernels.shared.geometry import Planes

Func = Any  # a ti.func


@dataclass(frozen=True)
class ByteVectors:
    """How a superblock is four vectors of bytes (see byte_vectors.py).

    `vector`: the ti.func (quants, quants_at, headers, headers_at, t) of vector t of a superblock whose quants and
    headers begin there; `make_scales` builds the ti.func (headers, at, x) of x times the scale of each 16 values,
    f32x16, and `make_minima` that of x times their minimum (None: they have none). A value is scale times the byte less
    `zero`, less the minimum.
    """

    zero: int
    vector: Func
    make_scales: Callable[[], Func]
    make_minima: Callable[[], Func] | None = None
    mean: float = 0.0  # of a byte, where there are minima


@dataclass(frozen=True)
class Decoder:
    """A scheme on the CPU. What a column has in a full band of 256 rows is one *column superblock* here, whatever the
    scheme's own superblock is: `planes` says how many vectors it takes.

    `unpack`: column superblocks as stored, u8 [n, bytes] -> quants u32 [n, 16 quant vectors], headers u32 [n, 4 header
    vectors]; their order of bytes is the decoder's own.

    `make_add_superblock` builds the ti.func (Panel, index, x, sums, offsets) that adds x times a column superblock to a
    band's 16 vectors of sums and to a vector of whatever is subtracted in the end. `make_write_rows` builds the ti.func
    (a, sums_at, band, out) that turns the sums of a band of a quad into the rows a[out..out+15].

    `make_decode_strip` builds the ti.func (Matrix, index, height, a, tile, start, columns, strip) that writes rows 64
    strip .. 64 strip + 63 of the columns from `start` on, of the band whose column 0 is column superblock `index` in a
    panel of `height` bands, to four vectors each of a[tile...]. `lanes_of_four`: lane i of vector b is row 4 i + b of
    the two and two sub-blocks that Q4_K stores together; else the rows are in order.

    `make_fast_tile`: for CPUs that `uses_integers`, as tile_sums.make_add_tile; None: the f32 one serves. So
    `make_fast_matmul` (workers, whether there are tail bands, `skips_zeros`) of prefill's product, see
    matmul.make_matmul.
    `make_tail_band`: see q4_k_tail.py; None: a last band is completed to 256 rows with zeros. `byte_vectors`: from what
    the kernels of the row layout are made; None: they are Q4_K's own (row_gemv.py).
    """

    scheme: Scheme
    planes: Planes
    unpack: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    make_add_superblock: Callable[[], Func]
    make_write_rows: Callable[[], Func]
    make_decode_strip: Callable[[], Func]
    lanes_of_four: bool = False
    make_fast_tile: Callable[[Func], tuple[Func, Func]] | None = None
    make_fast_matmul: Callable[[int, bool, bool], Func] | None = None
    make_tail_band: Callable[[bool], Func] | None = None
    byte_vectors: ByteVectors | None = None
