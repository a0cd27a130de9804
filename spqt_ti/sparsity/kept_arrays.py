"""Arrays in an .npz file that somebody else may have written: nothing is believed before it is compared with the file.

NumPy's own reader allocates what a header claims, whatever the file's size.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from spqt_ti.bounded_npy import read_array
from spqt_ti.errors import PolicyError

_MOST_BYTES = 4 << 30


class KeptArrays(dict[str, np.ndarray]):
    """Name -> array of a file; `take` is for what a reader relies on."""

    def __init__(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self.path = path

    def take(self, name: str, kinds: str, shape: tuple[int | None, ...], finite: bool = True) -> np.ndarray:
        """The array under `name`, of a kind among `kinds` (NumPy's letters) and of `shape` (None: any length).

        PolicyError otherwise, and for NaN and infinity unless not `finite`.
        """
        values = self.get(name)
        if values is None:
            raise self.damaged(f"{name} is missing")
        fits = values.ndim == len(shape) and all(w in (None, n) for n, w in zip(values.shape, shape, strict=True))
        if not fits or values.dtype.kind not in kinds:
            raise self.damaged(f"{name} is {values.dtype} {list(values.shape)}")
        if finite and values.dtype.kind == "f" and not np.isfinite(values).all():
            raise self.damaged(f"{name} holds NaN or infinity")
        return values

    def damaged(self, what: str) -> PolicyError:
        """The error for content that makes no sense."""
        return PolicyError(f"{self.path}: not a checkpoint ({what}); delete it to start again")


def read_arrays(path: Path) -> KeptArrays:
    """All arrays of an uncompressed .npz file. Raises OSError, ValueError or zipfile.BadZipFile for anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > min(_MOST_BYTES, path.stat().st_size):
                raise ValueError("the arrays are larger than the file")
            if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
                raise ValueError("compressed or encrypted")
            return KeptArrays(path, {entry.filename.removesuffix(".npy"): _read(archive, entry) for entry in entries})
    except (NotImplementedError, RuntimeError, EOFError, MemoryError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        try:
            return read_array(file)
        except ValueError as error:
            raise ValueError(f"{entry.filename}: {error}") from error
