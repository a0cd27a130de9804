"""What a calibration has done so far, on disk, so that it can be interrupted and go on to the same result.

Every file says what it belongs to, and one that belongs to something else is refused.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spqt_ti.atomic import written_whole
from spqt_ti.bounded_json import parse_object
from spqt_ti.errors import PolicyError
from spqt_ti.sparsity.kept_arrays import KeptArrays, read_arrays

FORMAT = 2  # of everything that is kept; a change of any search's arithmetic changes it too

Value = str | int | float
Identity = Mapping[str, Value]


@dataclass(frozen=True)
class Checkpoint:
    """Named files of arrays in a folder, each of the calibration `identity` (model, text, number of tokens).

    A folder of None keeps nothing.
    """

    folder: Path | None = None
    identity: Identity = field(default_factory=dict)

    def load(self, name: str, **settings: Value) -> KeptArrays | None:
        """What was saved last under `name`, None if nothing was.

        Raises PolicyError for a file that is damaged, or of another calibration, format or other `settings`.
        """
        path = self._path(name)
        if path is None or not path.exists():
            return None
        try:
            arrays = read_arrays(path)
            found = parse_object(str(arrays.pop("identity")))
            wanted = self._identity(settings)
            different = [key for key in wanted if found.get(key) != wanted[key]]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise PolicyError(f"{path}: not a checkpoint ({error}); delete it to start again") from error
        if different:
            key = different[0]
            raise PolicyError(
                f"{path}: checkpoint of another calibration ({key} is {found.get(key)}, not {wanted[key]}); "
                "delete it, or keep checkpoints in another folder"
            )
        return arrays

    def save(self, name: str, arrays: Mapping[str, np.ndarray], **settings: Value) -> None:
        """Replace what is under `name`, whole or not at all. Raises PolicyError where that is impossible."""
        path = self._path(name)
        if path is None:
            return
        identity = np.array(json.dumps(self._identity(settings)))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, identity=identity, **arrays)
        except OSError as error:
            raise PolicyError(f"{path}: cannot be written: {error}") from error

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.npz"

    def _identity(self, settings: Identity) -> dict[str, Value]:
        return {"format": FORMAT, **self.identity, **settings}
