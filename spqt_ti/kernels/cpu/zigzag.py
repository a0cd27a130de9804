"""Zigzag weights of a matrix as kernels read them: in panels of bands (see ZigzagShape), planes apart.

What a column has in a band goes to two arrays, quants and headers, so that both are aligned; each scheme says in which
order of bytes (schemes/).
"""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats import layout
from spqt_ti.kernels.cpu.schemes.decoder import Decoder
from spqt_ti.kernels.shared.geometry import HALF_PANEL_BANDS, ZigzagShape


def unpack(data: np.ndarray, shape: ZigzagShape, decoder: Decoder) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stored bytes (u8 [nbytes]) as words, superblocks in the order panel, column, band of the panel.

    Returns quants u32 [quant_vectors, 16], tail u32 [tail_vectors, 8] and headers u32 [headers, 4] (the tail's last).
    `shape` has the decoder's planes. Raises QuantizationError if the number of bytes is not that of the shape.
    """
    scheme = decoder.scheme
    superblocks = layout.superblocks(data, shape.rows, shape.cols, "zigzag", scheme)
    columns = superblocks.reshape(shape.bands, shape.cols, layout.BAND // scheme.values * scheme.bytes)
    bands, planes = columns[: shape.full_bands], shape.planes
    panels = [bands[start : start + height].transpose(1, 0, 2) for start, height in shape.panels]
    parts = [decoder.unpack(panel.reshape(-1, columns.shape[2])) for panel in panels]
    tail_quants, tail_headers = decoder.unpack(columns[shape.full_bands :].reshape(-1, columns.shape[2]))
    quants = np.concatenate([np.zeros((0, 16 * planes.quant_vectors), np.uint32), *(part[0] for part in parts)])
    headers = np.concatenate([*(part[1] for part in parts), tail_headers])
    return quants.reshape(-1, 16), np.ascontiguousarray(tail_quants[:, :8]), headers.reshape(-1, 4)


@ti.func
def panel_height(panel_bands, left):
    """Bands of the next panel where `left` are left, as ZigzagShape.panels has them."""
    return ti.select(left >= panel_bands, panel_bands, ti.min(left, HALF_PANEL_BANDS))


@ti.func
def panel_start(panel_bands, full_bands, band):
    """First band of the panel that `band` is in."""
    start = band - band % panel_bands
    if full_bands - start < panel_bands:
        start += (band - start) // HALF_PANEL_BANDS * HALF_PANEL_BANDS
    return start
