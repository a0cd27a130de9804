"""Writes a container: a directory that is either whole or not there at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from spqt_ti.container.directories import remove_leftovers, replace_directory, sibling
from spqt_ti.container.manifest import CONFIG, INDEX, MANIFEST, TOKENIZER, Manifest, Source
from spqt_ti.container.matrices import ExtraTensor, MatrixInfo, TensorInfo, expected_tensors
from spqt_ti.container.reader import reported, sha256_of
from spqt_ti.errors import ContainerError
from spqt_ti.model.config import ModelConfig

__all__ = ["ContainerWriter", "check_destination"]


def check_destination(destination: str | Path, overwrite: bool = False) -> Path:
    """Path that a container may be written to, symbolic links resolved.

    ContainerError where something is in the way. `overwrite` lets an existing container be replaced, and nothing else.
    """
    path = Path(os.path.realpath(Path(destination).expanduser()))
    with reported(path, "cannot be written"):
        if not path.exists():
            return path
        if not path.is_dir():
            raise ContainerError(f"{path}: a file is in the way, expected a new or empty directory")
        if not any(path.iterdir()):
            return path
        is_container = (path / MANIFEST).exists()
    if not is_container:
        raise ContainerError(f"{path}: the directory is not empty and holds no quantised model; choose another one")
    if not overwrite:
        raise ContainerError(f"{path}: a quantised model is already there; remove it, or ask to replace it (--force)")
    return path


class ContainerWriter:
    """Context manager that writes a container: `add` every tensor of `expected_tensors`, in any order.

    `matrices` (see `plan_matrices`) says how the matrices are stored, `extra` which other tensors there are,
    `transformations` what was done to the weights (see `Manifest`).

    Everything goes into a temporary directory beside the destination. When the block ends without an exception, files
    are flushed to disk and the directory takes the destination's name; otherwise, Ctrl-C included, it is removed and
    the destination is as before. A shard is written as soon as its tensors are complete, so memory holds few of them.
    What killed processes left of the same destination is removed first.

    ContainerError when the destination is taken, not writable, or the disk is full or too small.
    """

    def __init__(
        self,
        destination: str | Path,
        config: ModelConfig,
        matrices: Mapping[str, MatrixInfo],
        source: Source,
        tokenizer_json: str,
        chat_template: str | None,
        *,
        transformations: Iterable[Mapping[str, Any]] = (),
        extra: Iterable[ExtraTensor] = (),
        overwrite: bool = False,
    ) -> None:
        path = Path(os.path.realpath(Path(destination).expanduser()))
        remove_leftovers(path.parent, path.name)
        self.destination = check_destination(path, overwrite)
        self._config, self.matrices, self._source, self._overwrite = config, matrices, source, overwrite
        self._tokenizer_json, self._chat_template = tokenizer_json, chat_template
        self._transformations, self._extra = tuple(transformations), tuple(extra)
        self._expected = expected_tensors(config, matrices, self._extra)
        self._shards = _Shards(config)
        self._pending: dict[str, dict[str, npt.NDArray[Any]]] = {}  # shard -> the tensors it has so far
        self._missing = dict(self._expected)
        self._temporary = sibling(self.destination, "partial")
        self._made_parents: list[Path] = []

    def __enter__(self) -> ContainerWriter:
        try:
            with self._errors():
                self._make_parents()
                self._temporary.mkdir()
                self._check_space()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        committed = False
        try:
            if kind is None:
                self._commit()
                committed = True
        finally:
            if not committed:
                self._discard()

    @property
    def missing(self) -> list[str]:
        """Names of the tensors that are still to be added."""
        return list(self._missing)

    def add(self, name: str, values: npt.NDArray[Any]) -> None:
        """Take over one tensor; ValueError when the model has none of this name, type and shape, or already has it."""
        if name not in self._missing:
            raise ValueError(f"tensor {name} is not part of this model, or was already added")
        wanted, found = self._expected[name], TensorInfo(values.dtype, values.shape)
        if wanted != found:
            raise ValueError(f"tensor {name} is {found}, expected {wanted}")
        shard = self._shards.of(name)
        self._pending.setdefault(shard, {})[name] = np.ascontiguousarray(values)
        del self._missing[name]
        if not any(self._shards.of(other) == shard for other in self._missing):
            with self._errors():
                self._save(self._temporary / shard, self._pending.pop(shard))

    def add_matrix(self, matrix: MatrixInfo, data: npt.NDArray[np.uint8]) -> None:
        """Take over the stored bytes u8 [nbytes] of a matrix."""
        self.add(matrix.tensor, data.reshape(self._expected[matrix.tensor].shape))

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return reported(self.destination, "cannot be written")

    def _save(self, file: Path, tensors: dict[str, npt.NDArray[Any]]) -> None:
        save_file(tensors, file, metadata={"format": "np"})
        # Some versions of safetensors make files that only their owner reads; the directory has the user's umask.
        file.chmod(self._temporary.stat().st_mode & 0o666)

    def _make_parents(self) -> None:
        parent = self.destination.parent
        missing = [path for path in (parent, *parent.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir()
            self._made_parents.append(path)

    def _check_space(self) -> None:
        """Say early that the disk is too small; file systems that report no size are left to fail later."""
        usage = shutil.disk_usage(self._temporary)
        needed = sum(tensor.nbytes for tensor in self._expected.values())
        if usage.total and usage.free < needed:
            raise OSError(errno.ENOSPC, f"No space left on device: {needed:,} bytes needed, {usage.free:,} free")

    def _commit(self) -> None:
        if self._missing:
            raise ValueError(f"tensor {next(iter(self._missing))} was not added")
        check_destination(self.destination, self._overwrite)  # it may have been taken in the meantime
        with self._errors():
            self._write_json(CONFIG, self._config.to_dict())
            (self._temporary / TOKENIZER).write_text(self._tokenizer_json, encoding="utf-8")
            weight_map = {name: self._shards.of(name) for name in self._expected}
            total = sum(tensor.nbytes for tensor in self._expected.values())
            self._write_json(INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
            (self._temporary / MANIFEST).write_bytes(self._manifest().encode())
            for path in (*self._temporary.iterdir(), self._temporary):
                _flush(path)
            replace_directory(self._temporary, self.destination, self._overwrite)
            _flush(self.destination.parent)

    def _manifest(self) -> Manifest:
        files = sorted(self._temporary.iterdir())
        return Manifest(
            source=self._source,
            chat_template=self._chat_template,
            transformations=self._transformations,
            extra=self._extra,
            files={path.name: (path.stat().st_size, sha256_of(path)) for path in files},
            matrices=tuple(matrix.to_dict() for matrix in self.matrices.values()),
        )

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (self._temporary / name).write_text(text, encoding="utf-8")

    def _discard(self) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)
        for path in reversed(self._made_parents):
            with contextlib.suppress(OSError):  # not empty: somebody else uses it by now
                path.rmdir()


class _Shards:
    """Which file a tensor is in: 1 holds embedding, norm and head, 2 + i holds layer i."""

    def __init__(self, config: ModelConfig) -> None:
        self._count = config.num_hidden_layers + 1

    def of(self, name: str) -> str:
        number = 2 + int(name.split(".")[2]) if name.startswith("model.layers.") else 1
        return f"model-{number:05}-of-{self._count:05}.safetensors"


def _flush(path: Path) -> None:
    """fsync a file or directory; systems that cannot open a directory (Windows) need no such thing."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
