"""Opens a source model, whatever it is stored in."""

from __future__ import annotations

from pathlib import Path

from spqt_ti.errors import CheckpointError
from spqt_ti.paths import expanded
from spqt_ti.sources import huggingface
from spqt_ti.sources.checkpoint import Checkpoint
from spqt_ti.sources.gguf_file import named_parts, open_gguf
from spqt_ti.sources.huggingface import open_directory


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a Hugging Face directory or a `.gguf` file; CheckpointError says what is wrong with anything else."""
    path = expanded(path)
    try:
        if path.is_dir():
            return open_directory(path)
        if not path.exists():
            raise CheckpointError(f"{path}: no such file or directory")
        return open_gguf(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def model_files(path: str | Path) -> list[Path]:
    """The files that make the model at a path, sorted: what must change for it to be another model.

    A README, an editor's lock or a dangling link beside them is none. CheckpointError where no model is there.
    """
    path = expanded(path)
    if path.exists() and not path.is_dir() and not path.is_file():
        raise CheckpointError(f"{path}: not a regular file")  # a device, or a pipe, may have no end
    try:
        return sorted(huggingface.model_files(path) if path.is_dir() else named_parts(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
