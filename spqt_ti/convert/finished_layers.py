"""Layers that a long conversion has finished, in a folder: what a killed one had done is not done again.

A layer's file appears when it is complete. Beside them lie the calibration windows and the states of the windows before
the next layer. A digest ends each file, so that a damaged one does not become a model's weights.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spqt_ti.atomic import written_whole
from spqt_ti.bounded_json import read_bytes
from spqt_ti.bounded_npy import read_array
from spqt_ti.errors import ContainerError
from spqt_ti.model.sites import SITES

__all__ = ["FinishedLayers", "folder_beside"]

_DIGEST = 32  # bytes
_MOST_BYTES = 1 << 38  # of a file: states of a million tokens of the largest model have a third of that
F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]


def folder_beside(destination: str | Path) -> Path:
    """Where the layers of an unfinished model lie: a hidden folder beside it."""
    path = Path(destination).expanduser().absolute()
    return path.with_name(f".{path.name}.unfinished-gptq")


class FinishedLayers:
    """The files in `folder`. `made_of`: all that the bytes of a layer depend on, as JSON has it.

    A folder of anything else, or a damaged one, is begun anew. ContainerError where it cannot be written.
    """

    def __init__(self, folder: Path, made_of: Mapping[str, Any]) -> None:
        self.folder, self._made_of = folder, json.dumps(made_of, sort_keys=True)
        self.count = self._found() if self._is_ours() else 0  # layers, from the first on

    def windows(self) -> list[list[int]] | None:
        """The calibration windows, if they have been saved."""
        if not self._is_ours():
            return None
        try:
            found = self._read("windows.npy")
        except (OSError, ValueError):
            return None
        return None if found is None or found.ndim != 2 or found.dtype != np.int64 else found.tolist()

    def begin(self, windows: Sequence[Sequence[int]]) -> None:
        """Save windows, unless these are saved already."""
        if self.windows() == [list(window) for window in windows]:
            return
        self.remove()
        self.count = 0
        try:
            self.folder.mkdir(mode=0o700, parents=True)
            self._write("windows.npy", np.asarray(windows, np.int64))
            (self.folder / "made_of.json").write_text(self._made_of)
        except OSError as error:
            raise ContainerError(f"{self.folder}: finished layers cannot be kept there: {error}") from error

    def matrices(self, layer: int) -> list[U8Array] | None:
        """Stored bytes of a layer's matrices, in the order of Site; None where it is not finished."""
        if layer >= self.count:
            return None
        joined, sizes = (self._kept(f"{part}-{layer}.npy") for part in ("layer", "sizes"))
        if joined.dtype != np.uint8 or joined.ndim != 1 or sizes.dtype.kind != "i" or sizes.shape != (len(SITES),):
            raise self._damaged(f"layer {layer} is {joined.dtype} {list(joined.shape)} of {list(sizes.shape)} matrices")
        if (sizes < 0).any() or sum(sizes.tolist()) != joined.size:
            raise self._damaged(f"matrices of layer {layer} have {sizes.tolist()} of {joined.size} bytes")
        return list(np.split(joined, np.cumsum(sizes)[:-1]))

    def states(self, shape: tuple[int, ...]) -> F32Array:
        """States before the first layer that is not finished, f32 of `shape`: [windows, tokens, hidden]."""
        found = self._kept(f"states-{self.count}.npy")
        if found.dtype != np.float32 or found.shape != shape or not np.isfinite(found).all():
            raise self._damaged(f"states are {found.dtype} {list(found.shape)}, or not finite")
        return found

    def add(self, matrices: Sequence[U8Array], states: F32Array) -> None:
        """The bytes of the next layer's matrices, in the order of Site, and the states after it."""
        layer = self.count
        try:
            self._write(f"states-{layer + 1}.npy", states)
            self._write(f"sizes-{layer}.npy", np.array([matrix.size for matrix in matrices]))
            self._write(f"layer-{layer}.npy", np.concatenate(matrices))
            (self.folder / f"states-{layer}.npy").unlink(missing_ok=True)
        except OSError as error:
            raise ContainerError(f"{self.folder}: finished layers cannot be kept there: {error}") from error
        self.count += 1

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _digest(self, name: str, data: bytes | memoryview) -> bytes:
        digest = hashlib.sha256(f"{name} {self._made_of}".encode())
        digest.update(data)
        return digest.digest()

    def _write(self, name: str, values: npt.NDArray[Any]) -> None:
        data = io.BytesIO()
        np.save(data, values, allow_pickle=False)
        data.write(self._digest(name, data.getvalue()))
        with written_whole(self.folder / name) as temporary:
            temporary.write_bytes(data.getbuffer())

    def _read(self, name: str) -> npt.NDArray[Any]:
        content = read_bytes(self.folder / name, _MOST_BYTES)
        data = content[:-_DIGEST]
        if self._digest(name, data) != content[-_DIGEST:]:
            raise ValueError("its digest is another")
        return read_array(io.BytesIO(data))

    def _kept(self, name: str) -> npt.NDArray[Any]:
        try:
            return self._read(name)
        except (OSError, ValueError) as error:
            raise self._damaged(f"{name} cannot be read now: {error}") from error

    def _damaged(self, what: str) -> ContainerError:
        return ContainerError(f"{self.folder}: finished layers are damaged ({what}); delete the folder to begin again")

    def _is_ours(self) -> bool:
        made_of = self._made_of.encode()
        try:
            return read_bytes(self.folder / "made_of.json", len(made_of)) == made_of
        except (OSError, ValueError):
            return False

    def _found(self) -> int:
        """Layers that are complete, with the states after the last of them."""
        count = 0
        while (self.folder / f"layer-{count}.npy").is_file():
            count += 1
        return count if (self.folder / f"states-{count}.npy").is_file() else 0
