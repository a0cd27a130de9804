"""Tiles of the Q8_0 vocabulary matrix, as the kernels of every engine read them. NumPy only."""

import numpy as np

from spqt_ti.kernels.shared.geometry import TILE_ROWS, tiles_for


def tile(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q8_0 blocks u8 [rows, cols / 32, 34] -> words u32 [tiles * cols, 16] and scales f16 [tiles * cols / 32 * 4, 16].

    Word vector (tile, column); scale vectors (tile, block of 32 columns, 16 rows). Rows are padded with zeros to a
    multiple of 64.
    """
    rows, per_row, _ = blocks.shape
    tiles = tiles_for(rows)
    padded = np.zeros((tiles * TILE_ROWS, per_row, 34), np.uint8)
    padded[:rows] = blocks
    scales = padded[:, :, :2].copy().view("<f2").reshape(tiles, 4, 16, per_row)
    quants = padded[:, :, 2:].reshape(tiles, 4, 16, per_row * 32) ^ np.uint8(128)
    words = np.ascontiguousarray(quants.transpose(0, 3, 2, 1)).view("<u4")
    return words.reshape(-1, 16), np.ascontiguousarray(scales.transpose(0, 3, 1, 2)).reshape(-1, 16)
