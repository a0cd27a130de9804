"""The file with the predictors of a policy: safetensors, f16 matrices and f32 biases, named and hashed in the policy.

Tensors: `LAYER.fc1` f16 [rank, hidden], `LAYER.fc2` f16 [intermediate, rank], `LAYER.bias` f32 [intermediate].
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from spqt_ti.atomic import written_whole
from spqt_ti.errors import PolicyError
from spqt_ti.model.predictors import NeuronPredictor

SUFFIX = ".safetensors"
_PARTS = {"fc1": np.dtype(np.float16), "fc2": np.dtype(np.float16), "bias": np.dtype(np.float32)}


@dataclass(frozen=True)
class Reference:
    """What a policy says of the file: its name, without a folder, and its SHA-256."""

    file: str
    sha256: str

    def to_dict(self) -> dict[str, str]:
        """For the policy's JSON."""
        return {"file": self.file, "sha256": self.sha256}

    @classmethod
    def to(cls, file: str, content: bytes) -> Reference:
        """To a file of this content."""
        return cls(file, hashlib.sha256(content).hexdigest())

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Reference:
        """From the policy's JSON. ValueError for a name that leads out of the policy's folder, KeyError without one."""
        file, sha256 = fields["file"], fields["sha256"]
        if not isinstance(file, str) or Path(file).name != file or not file.isprintable():
            raise ValueError(f"the predictors are said to be in {file!r:.80}, expected the name of a file")
        return cls(file, str(sha256))


def content(predictors: Mapping[int, NeuronPredictor]) -> bytes:
    """The file: the same for the same predictors. PolicyError where f16 cannot hold a matrix."""
    tensors = {}
    for layer, predictor in sorted(predictors.items()):
        for part, kind in _PARTS.items():
            with np.errstate(over="ignore"):
                tensors[f"{layer}.{part}"] = np.ascontiguousarray(getattr(predictor, part).astype(kind))
            if not np.isfinite(tensors[f"{layer}.{part}"]).all():
                raise PolicyError(f"the predictor of layer {layer} has values in {part} that f16 cannot hold")
    return bytes(save(tensors))


def write(path: Path, predictors: Mapping[int, NeuronPredictor]) -> None:
    """Put the file in place whole or not at all; PolicyError if that is impossible."""
    data = content(predictors)
    try:
        with written_whole(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise PolicyError(f"{path}: cannot be written: {error}") from error


def read(folder: Path, reference: Reference) -> dict[int, NeuronPredictor]:
    """Layer -> predictor. PolicyError for a file that is missing, damaged or another than the policy was saved with."""
    path = folder / reference.file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PolicyError(
            f"{path}: the policy's predictors cannot be read ({error}); the file belongs beside the policy"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != reference.sha256:
        raise PolicyError(
            f"{path}: not the predictors that the policy was saved with (SHA-256 {found:.12}..., the policy says "
            f"{reference.sha256:.12}...); calibrate again or put the right file there"
        )
    try:
        return _predictors(load(data))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise PolicyError(f"{path}: not a file of predictors ({error})") from error


def _predictors(tensors: Mapping[str, np.ndarray]) -> dict[int, NeuronPredictor]:
    layers = sorted({int(name.partition(".")[0]) for name in tensors})
    expected = {f"{layer}.{part}" for layer in layers for part in _PARTS}
    if expected != set(tensors):
        raise ValueError(f"tensors {sorted(expected ^ set(tensors))[0]} are missing or too many")
    for name, values in tensors.items():
        if values.dtype != _PARTS[name.partition(".")[2]]:
            raise ValueError(f"tensor {name} is {values.dtype}")
    return {
        layer: NeuronPredictor(*(tensors[f"{layer}.{part}"].astype(np.float32) for part in _PARTS)) for layer in layers
    }
