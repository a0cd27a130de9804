"""Calibration windows that come with the package: what `sampled_windows` draws from a known model with seed 0.

Drawing takes as long as all else that GPTQ does, and gives other tokens where threads or kernels add up in another
order. A file data/windows/NAME.npz has `tokens` u16 [windows, tokens] and the `source` that they were drawn from: the
SHA-256 of `Source`. bench/accuracy/drawn_windows.py makes one.
"""

from __future__ import annotations

from importlib import resources

import numpy as np

__all__ = ["SEED", "stored_windows"]

SEED = 0


def stored_windows(source_sha256: str | None) -> list[list[int]]:
    """All that there are for a source; none for an unknown one."""
    for file in resources.files("spqt_ti").joinpath("data/windows").iterdir():
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
            if str(found["source"]) == source_sha256:
                windows: list[list[int]] = found["tokens"].tolist()
                return windows
    return []
