"""The table of cosines and sines that rotary position embedding reads. NumPy only."""

import numpy as np


def rope_table(inverse_frequencies: np.ndarray, positions: int, lengths: np.ndarray | float = 1.0) -> np.ndarray:
    """cos and sin of every position, f32 [positions, head_dim]: cosines in the first half of a row, sines in the
    second, each pair of them times its length.
    """
    angles = np.outer(np.arange(positions, dtype=np.float64), inverse_frequencies)
    return np.concatenate([lengths * np.cos(angles), lengths * np.sin(angles)], axis=1).astype(np.float32)
