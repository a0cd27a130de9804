"""Opens a source model, whatever it is stored in."""

from __future__ import annotations

from pathlib import Path

from spqt_ti.errors import CheckpointError
from spqt_ti.sources.checkpoint import Checkpoint
from spqt_ti.sources.gguf_file import open_gguf
from spqt_ti.sources.huggingface import open_directory


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a Hugging Face directory or a `.gguf` file; CheckpointError says what is wrong with anything else."""
    path = Path(path)
    try:
        if path.is_dir():
            return open_directory(path)
        if not path.exists():
            raise CheckpointError(f"{path}: no such file or directory")
        return open_gguf(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
