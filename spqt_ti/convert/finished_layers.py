"""Layers that a long conversion has finished, in a folder: what a killed one had done is not done again.

A layer's file appears when it is complete. Beside them lie the calibration windows and the states of the windows before
the next layer.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spqt_ti.atomic import written_whole
from spqt_ti.errors import ContainerError

__all__ = ["FinishedLayers", "folder_beside"]

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
        found = _read(self.folder / "windows.npy")
        return None if found is None or found.ndim != 2 else found.tolist()

    def begin(self, windows: Sequence[Sequence[int]]) -> None:
        """Save windows, unless these are saved already."""
        if self.windows() == [list(window) for window in windows]:
            return
        self.remove()
        self.count = 0
        try:
            self.folder.mkdir(mode=0o700, parents=True)
            _write(self.folder / "windows.npy", np.asarray(windows, np.int64))
            (self.folder / "made_of.json").write_text(self._made_of)
        except OSError as error:
            raise ContainerError(f"{self.folder}: finished layers cannot be kept there: {error}") from error

    def matrices(self, layer: int) -> list[U8Array] | None:
        """Stored bytes of a layer's matrices, in the order of Site; None where it is not finished."""
        if layer >= self.count:
            return None
        joined = _read(self.folder / f"layer-{layer}.npy")
        sizes = _read(self.folder / f"sizes-{layer}.npy")
        if joined is None or sizes is None:
            raise ContainerError(
                f"{self.folder}: layer {layer} was there and cannot be read now; begin again without it"
            )
        return list(np.split(joined, np.cumsum(sizes)[:-1]))

    def states(self) -> F32Array:
        """States before the first layer that is not finished, f32 [windows, tokens, hidden]."""
        found = _read(self.folder / f"states-{self.count}.npy")
        if found is None:
            raise ContainerError(f"{self.folder}: states were there and cannot be read now; begin again without it")
        return found

    def add(self, matrices: Sequence[U8Array], states: F32Array) -> None:
        """The bytes of the next layer's matrices, in the order of Site, and the states after it."""
        layer = self.count
        try:
            _write(self.folder / f"states-{layer + 1}.npy", states)
            _write(self.folder / f"sizes-{layer}.npy", np.array([matrix.size for matrix in matrices]))
            _write(self.folder / f"layer-{layer}.npy", np.concatenate(matrices))
            (self.folder / f"states-{layer}.npy").unlink(missing_ok=True)
        except OSError as error:
            raise ContainerError(f"{self.folder}: finished layers cannot be kept there: {error}") from error
        self.count += 1

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_ours(self) -> bool:
        try:
            return (self.folder / "made_of.json").read_text() == self._made_of
        except (OSError, ValueError):
            return False

    def _found(self) -> int:
        """Layers that are complete, with the states after the last of them."""
        count = 0
        while (self.folder / f"layer-{count}.npy").is_file():
            count += 1
        return count if (self.folder / f"states-{count}.npy").is_file() else 0


def _read(path: Path) -> npt.NDArray[Any] | None:
    try:
        found: npt.NDArray[Any] = np.load(path, allow_pickle=False)
        return found
    except (OSError, ValueError):
        return None


def _write(path: Path, values: npt.NDArray[Any]) -> None:
    data = io.BytesIO()
    np.save(data, values, allow_pickle=False)
    with written_whole(path) as temporary:
        temporary.write_bytes(data.getbuffer())
