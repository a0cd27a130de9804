"""A directory whose weights are a pickle that writes a file when it is opened.

Other programs: `torch.load` before 2.6 ran it unless told otherwise; this package opens no pickles.
"""

from __future__ import annotations

import pickle
from pathlib import Path

from tiny_models import random_weights, tiny_config, write_huggingface


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def make(folder: Path) -> list[Path]:
    """One directory; the file `ran` beside it must never appear."""
    path = write_huggingface(folder / "pickle", tiny_config(), random_weights(tiny_config()))
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(_Payload(folder / "ran")))
    return [path]
