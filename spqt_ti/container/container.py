"""A quantised model on disk: a directory that is either whole and verified or not there at all.

`config.json` and `tokenizer.json` as Hugging Face has them, one safetensors file per block and one for embedding, norm
and head, `model.safetensors.index.json`, and `spqt.json`: format version, scheme, layout, source, chat template,
matrices, and size and SHA-256 of every file. `docs/design.md` lists the tensors.

Knows nothing of kernels: what it reads back is formats' NumPy.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from spqt_ti.errors import CheckpointError, ContainerError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats import q4_k, q8_0
from spqt_ti.model.config import ModelConfig

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "SCHEMES",
    "Container",
    "ContainerWriter",
    "MatrixInfo",
    "TensorInfo",
    "check_destination",
    "expected_tensors",
    "stacked_matrices",
]

FORMAT_VERSION = 1
MANIFEST = "spqt.json"
SCHEMES = ("q4_k",)

_CONFIG, _TOKENIZER, _INDEX = "config.json", "tokenizer.json", "model.safetensors.index.json"
_HASH_CHUNK = 1 << 20
_U8, _F32 = np.dtype("<u1"), np.dtype("<f4")
_STORED: dict[str, np.dtype[Any]] = {"U8": _U8, "F32": _F32}  # safetensors' name -> NumPy's
_STACKS = {
    "self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "self_attn.o_proj": ("o_proj",),
    "mlp.gate_up_proj": ("gate_proj", "up_proj"),
    "mlp.down_proj": ("down_proj",),
}
_EMBEDDING, _NORM, _HEAD = "model.embed_tokens", "model.norm.weight", "lm_head"

U8Array = npt.NDArray[np.uint8]
F32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MatrixInfo:
    """A stored matrix [rows, cols]: projections that share an input, stacked. `parts` is projection -> its rows."""

    name: str
    parts: Mapping[str, int]
    rows: int
    cols: int

    def projections(self) -> dict[str, slice]:
        """Full name (`model.layers.0.self_attn.q_proj`) -> rows of this matrix, in order."""
        prefix, start, found = self.name.rpartition(".")[0], 0, {}
        for part, rows in self.parts.items():
            found[f"{prefix}.{part}"] = slice(start, start + rows)
            start += rows
        return found

    def to_dict(self) -> dict[str, Any]:
        """As it stands in `spqt.json`."""
        return {"name": self.name, "parts": dict(self.parts), "rows": self.rows, "cols": self.cols}


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of a stored tensor."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def stacked_matrices(config: ModelConfig) -> dict[str, MatrixInfo]:
    """Name -> every matrix that decoding reads sparsely, in the order in which a forward pass uses them."""
    shapes = config.tensor_shapes()
    found = {}
    for block in range(config.num_hidden_layers):
        for stack, projections in _STACKS.items():
            name = f"model.layers.{block}.{stack}"
            prefix = name.rpartition(".")[0]
            parts = {part: shapes[f"{prefix}.{part}.weight"][0] for part in projections}
            cols = shapes[f"{prefix}.{projections[0]}.weight"][1]
            found[name] = MatrixInfo(name, parts, sum(parts.values()), cols)
    return found


def expected_tensors(config: ModelConfig, layout: str, scheme: str) -> dict[str, TensorInfo]:
    """Name -> type and shape of every tensor that a container of this model holds, and of no other."""
    dense = TensorInfo(_U8, (config.vocab_size, config.hidden_size // q8_0.VALUES, q8_0.BYTES))
    tensors = {f"{_EMBEDDING}.q8_0": dense, _NORM: TensorInfo(_F32, (config.hidden_size,))}
    if not config.tie_word_embeddings:
        tensors[f"{_HEAD}.q8_0"] = dense
    for matrix in stacked_matrices(config).values():
        size = layouts.nbytes(matrix.rows, matrix.cols, layout, q4_k.SCHEME)
        tensors[f"{matrix.name}.{scheme}"] = TensorInfo(_U8, (size,))
        if config.has_bias(matrix.name):
            tensors[f"{matrix.name}.bias"] = TensorInfo(_F32, (matrix.rows,))
    for layer in range(config.num_hidden_layers):
        for norm in config.norms():
            tensors[f"model.layers.{layer}.{norm.tensor}"] = TensorInfo(_F32, (norm.size,))
    return tensors


def check_destination(destination: str | Path, overwrite: bool = False) -> Path:
    """Path that a container may be written to, symbolic links resolved.

    ContainerError where something is in the way. `overwrite` lets an existing container be replaced, and nothing else.
    """
    path = Path(os.path.realpath(Path(destination).expanduser()))
    with _reported(path, "cannot be written"):
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
        raise ContainerError(f"{path}: a quantised model is already there; --force (overwrite=True) replaces it")
    return path


class ContainerWriter:
    """Context manager that writes a container: `add` every tensor of `expected_tensors`, in any order.

    Everything goes into a temporary directory beside the destination. When the block ends without an exception, files
    are flushed to disk and the directory takes the destination's name; otherwise, Ctrl-C included, it is removed and
    the destination is as before. A shard is written as soon as its tensors are complete, so memory holds few of them.

    ContainerError when the destination is taken, not writable, or the disk is full.
    """

    def __init__(
        self,
        destination: str | Path,
        config: ModelConfig,
        layout: str,
        scheme: str,
        source: str,
        tokenizer_json: str,
        chat_template: str | None,
        overwrite: bool = False,
    ) -> None:
        self.destination = check_destination(destination, overwrite)
        self._config, self._layout, self._scheme, self._overwrite = config, layout, scheme, overwrite
        self._source, self._chat_template, self._tokenizer_json = source, chat_template, tokenizer_json
        self._expected = expected_tensors(config, layout, scheme)
        self._shards = _Shards(config)
        self._pending: dict[str, dict[str, npt.NDArray[Any]]] = {}  # shard -> the tensors it has so far
        self._missing = dict(self._expected)
        self._temporary = _sibling(self.destination, "partial")
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

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return _reported(self.destination, "cannot be written")

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
            self._write_json(_CONFIG, self._config.to_dict())
            (self._temporary / _TOKENIZER).write_text(self._tokenizer_json, encoding="utf-8")
            weight_map = {name: self._shards.of(name) for name in self._expected}
            total = sum(tensor.nbytes for tensor in self._expected.values())
            self._write_json(_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
            self._write_json(MANIFEST, self._manifest())
            for path in (*self._temporary.iterdir(), self._temporary):
                _flush(path)
            _swap(self._temporary, self.destination)
            _flush(self.destination.parent)

    def _manifest(self) -> dict[str, Any]:
        files = sorted(self._temporary.iterdir())
        return {
            "format": "spqt",
            "version": FORMAT_VERSION,
            "scheme": self._scheme,
            "layout": self._layout,
            "source": self._source,
            "chat_template": self._chat_template,
            "matrices": [matrix.to_dict() for matrix in stacked_matrices(self._config).values()],
            "files": {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files},
        }

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (self._temporary / name).write_text(text, encoding="utf-8")

    def _discard(self) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)
        for path in reversed(self._made_parents):
            with contextlib.suppress(OSError):  # not empty: somebody else uses it by now
                path.rmdir()


@dataclass(frozen=True)
class Container:
    """An opened container. Opening reads headers (and, to verify, every byte once); tensors are mapped when read."""

    path: Path
    config: ModelConfig
    layout: str
    scheme: str
    source: str
    chat_template: str | None = field(repr=False)
    tokenizer_json: str = field(repr=False)
    matrices: Mapping[str, MatrixInfo] = field(repr=False)
    fingerprint: str  # of all files' checksums: two containers with the same one are the same model
    _places: Mapping[str, _Place] = field(repr=False)

    @classmethod
    def open(cls, directory: str | Path, verify: bool = True) -> Container:
        """Open and check a container: version, files, sizes, tensors and, with `verify`, every SHA-256.

        ContainerError names the file or tensor, what was expected, what was found, and what to do.
        """
        path = Path(directory).expanduser()
        with _reported(path, "cannot be read"):
            return _open(path, verify)

    def names(self) -> list[str]:
        """Names of all stored tensors."""
        return list(self._places)

    def read(self, name: str) -> npt.NDArray[Any]:
        """A stored tensor (u8 or f32), mapped read-only: nothing is read before it is used."""
        if name not in self._places:
            raise ContainerError(f"{self.path}: there is no tensor {name}")
        place = self._places[name]
        with _reported(place.file, "cannot be read"):
            mapped = np.memmap(place.file, place.info.dtype, "r", place.offset, place.info.shape)
        return np.asarray(mapped)

    def dequantize(self, name: str) -> F32Array:
        """f32 [rows, cols] of a matrix, of one projection of it, or of `model.embed_tokens` or `lm_head`."""
        if name in (_EMBEDDING, _HEAD):
            return self._dequantize_dense(name)
        matrix, rows = self._find(name)
        data = self.read(f"{matrix.name}.{self.scheme}")
        return layouts.dequantize_matrix(data, matrix.rows, matrix.cols, self.layout, q4_k.SCHEME)[rows]

    def row_bytes(self, name: str) -> U8Array:
        """Q4_K bytes u8 [rows, ceil(cols / 256) * 144] of a projection or matrix, as ggml stores them in a GGUF file.

        ContainerError unless the layout is `row`: zigzag superblocks hold other groups of weights, so ggml's bytes
        cannot be had from them.
        """
        matrix, rows = self._find(name)
        if self.layout != "row":
            raise ContainerError(
                f"{self.path}: ggml's bytes need the row layout, and this is {self.layout}; quantise with --layout row"
            )
        width = -(-matrix.cols // q4_k.VALUES) * q4_k.BYTES
        data: U8Array = self.read(f"{matrix.name}.{self.scheme}")
        return data.reshape(matrix.rows, width)[rows]

    def weights(self) -> Iterator[tuple[str, F32Array]]:
        """Hugging Face name and f32 values of every tensor, dequantised: the model that decoding computes with."""
        biases = {part: matrix for matrix in self.matrices.values() for part in matrix.projections()}
        for name in self.config.tensor_shapes():
            stem, _, kind = name.rpartition(".")
            if name in self._places:
                yield name, self.read(name)
            elif kind == "bias":
                matrix = biases[stem]
                yield name, self.read(f"{matrix.name}.bias")[matrix.projections()[stem]]
            else:
                yield name, self.dequantize(stem)

    def _dequantize_dense(self, name: str) -> F32Array:
        if name == _HEAD and self.config.tie_word_embeddings:
            name = _EMBEDDING
        blocks = self.read(f"{name}.q8_0")
        return q8_0.dequantize(blocks.reshape(-1, q8_0.BYTES)).reshape(len(blocks), -1)

    def _find(self, name: str) -> tuple[MatrixInfo, slice]:
        """The matrix of this name, or the one with this projection, and the rows that are meant."""
        if name in self.matrices:
            return self.matrices[name], slice(0, self.matrices[name].rows)
        for matrix in self.matrices.values():
            rows = matrix.projections().get(name)
            if rows is not None:
                return matrix, rows
        raise ContainerError(f"{self.path}: there is no matrix {name}")


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes are."""

    file: Path
    offset: int
    info: TensorInfo


class _Shards:
    """Which file a tensor is in: 1 holds embedding, norm and head, 2 + i holds block i."""

    def __init__(self, config: ModelConfig) -> None:
        self._count = config.num_hidden_layers + 1

    def of(self, name: str) -> str:
        number = 2 + int(name.split(".")[2]) if name.startswith("model.layers.") else 1
        return f"model-{number:05}-of-{self._count:05}.safetensors"


@dataclass(frozen=True)
class _Manifest:
    """The content of `spqt.json`, checked field by field."""

    scheme: str
    layout: str
    source: str
    chat_template: str | None
    matrices: list[Any]
    files: Mapping[str, tuple[int, str]]  # name -> bytes, SHA-256

    @property
    def fingerprint(self) -> str:
        lines = "".join(f"{sha256}  {name}\n" for name, (_, sha256) in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _open(path: Path, verify: bool) -> Container:
    manifest = _read_manifest(path)
    _check_files(path, manifest, verify)
    config = _read_config(path)
    matrices = stacked_matrices(config)
    if manifest.matrices != [matrix.to_dict() for matrix in matrices.values()]:
        raise _damaged(path / MANIFEST, f"its list of matrices is not that of {_CONFIG}")
    return Container(
        path=path,
        config=config,
        layout=manifest.layout,
        scheme=manifest.scheme,
        source=manifest.source,
        chat_template=manifest.chat_template,
        tokenizer_json=(path / _TOKENIZER).read_text(encoding="utf-8"),
        matrices=matrices,
        fingerprint=manifest.fingerprint,
        _places=_read_places(path, manifest, expected_tensors(config, manifest.layout, manifest.scheme)),
    )


def _read_manifest(path: Path) -> _Manifest:
    file = path / MANIFEST
    hint = "expected a quantised model (spqt quantize SOURCE DESTINATION makes one)"
    if not path.is_dir():
        found = "not a directory" if path.exists() else "no such directory"
        raise ContainerError(f"{path}: {found}, {hint}")
    if not file.exists():
        raise ContainerError(f"{path}: {MANIFEST} is missing, {hint}")
    fields = _read_json(file)
    if fields.get("format") != "spqt":
        raise _damaged(file, f"format is {fields.get('format')!r}, expected 'spqt'")
    if fields.get("version") != FORMAT_VERSION:
        raise ContainerError(
            f"{file}: format version is {fields.get('version')!r}, this program reads {FORMAT_VERSION}; "
            "use the version that wrote it, or quantise the model again"
        )
    scheme = _one_of(file, fields, "scheme", SCHEMES)
    layout = _one_of(file, fields, "layout", layouts.LAYOUTS)
    source, template, matrices = fields.get("source"), fields.get("chat_template"), fields.get("matrices")
    if not isinstance(source, str) or not isinstance(template, (str, type(None))) or not isinstance(matrices, list):
        raise _damaged(file, "source, chat_template or matrices is missing or of another type")
    return _Manifest(scheme, layout, source, template, matrices, _read_checksums(file, fields.get("files")))


def _one_of(file: Path, fields: Mapping[str, Any], name: str, known: tuple[str, ...]) -> str:
    if fields.get(name) not in known:
        raise _damaged(file, f"{name} is {fields.get(name)!r}, expected one of: {', '.join(known)}")
    return str(fields[name])


def _read_checksums(file: Path, entries: Any) -> dict[str, tuple[int, str]]:
    if not isinstance(entries, dict):
        raise _damaged(file, "the list of files is missing")
    files = {}
    for name, entry in entries.items():
        size = entry.get("bytes") if isinstance(entry, dict) else None
        sha256 = entry.get("sha256") if isinstance(entry, dict) else None
        # A manifest must not lead out of its directory.
        if Path(name).name != name or not isinstance(size, int) or not isinstance(sha256, str):
            raise _damaged(file, f"its entry for file {name!r} is malformed")
        files[name] = (size, sha256)
    for name in (_CONFIG, _TOKENIZER, _INDEX):
        if name not in files:
            raise _damaged(file, f"it lists no {name}")
    return files


def _check_files(path: Path, manifest: _Manifest, verify: bool) -> None:
    """All files, sizes before checksums: what is cheap to find is found first."""
    for name, (size, _) in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise _damaged(file, "the file is missing")
        if file.stat().st_size != size:
            raise _damaged(file, f"truncated or changed: it has {file.stat().st_size:,} bytes, expected {size:,}")
    for name, (_, sha256) in manifest.files.items() if verify else ():
        found = _sha256(path / name)
        if found != sha256:
            raise _damaged(path / name, f"checksum mismatch: SHA-256 is {found[:16]}..., expected {sha256[:16]}...")


def _read_config(path: Path) -> ModelConfig:
    try:
        return ModelConfig.from_dict(_read_json(path / _CONFIG))
    except CheckpointError as error:
        raise ContainerError(f"{path / _CONFIG}: {error}") from error


def _read_places(path: Path, manifest: _Manifest, expected: Mapping[str, TensorInfo]) -> dict[str, _Place]:
    """Place of every expected tensor, in that order; ContainerError for one missing, other, or too many."""
    weight_map = _read_json(path / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise _damaged(path / _INDEX, "weight_map is missing")
    found: dict[str, _Place] = {}
    for shard in sorted({name for name in weight_map.values() if isinstance(name, str)}):
        if shard not in manifest.files:
            raise _damaged(path / _INDEX, f"it names {shard!r}, a file that {MANIFEST} does not list")
        found |= _read_header(path / shard)
    for name, info in expected.items():
        file = path / str(weight_map.get(name, _INDEX))
        if name not in found or found[name].file != file:
            raise _damaged(file, f"tensor {name} is missing, expected {info}")
        if found[name].info != info:
            raise _damaged(file, f"tensor {name} is {found[name].info}, expected {info}")
    for name, place in found.items():
        if name not in expected:
            raise _damaged(place.file, f"tensor {name} is not part of this model")
    return {name: found[name] for name in expected}


def _read_header(file: Path) -> dict[str, _Place]:
    """Tensors of one safetensors file; its library verifies that the header fits the file."""
    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        raise _damaged(file, f"not a whole safetensors file ({error})") from error
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    return {name: _place(file, 8 + size, name, entry) for name, entry in header.items()}


def _place(file: Path, data_start: int, name: str, entry: Mapping[str, Any]) -> _Place:
    if entry["dtype"] not in _STORED:
        raise _damaged(file, f"tensor {name} is {entry['dtype']}, expected one of: {', '.join(_STORED)}")
    info = TensorInfo(_STORED[entry["dtype"]], tuple(entry["shape"]))
    return _Place(file, data_start + entry["data_offsets"][0], info)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError as well
        raise _damaged(file, f"not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise _damaged(file, "expected a JSON object")
    return value


def _damaged(file: Path, what: str) -> ContainerError:
    return ContainerError(f"{file}: {what}; quantise the model again")


@contextlib.contextmanager
def _reported(path: Path, what: str) -> Iterator[None]:
    """Turn what the system says into a ContainerError of one line."""
    try:
        yield
    except OSError as error:
        raise ContainerError(f"{path}: {what} ({error.strerror or error})") from error
    except SafetensorError as error:  # its writer wraps the system's errors
        raise ContainerError(f"{path}: {what} ({error})") from error


def _sibling(path: Path, purpose: str) -> Path:
    """A new hidden name in the same directory, so that a rename stays within one file system."""
    return path.with_name(f".{path.name}.{purpose}-{secrets.token_hex(4)}")


def _swap(temporary: Path, destination: Path) -> None:
    """Give the finished directory its name. What was there is moved away before and deleted only afterwards."""
    if not destination.exists():
        os.rename(temporary, destination)
        return
    if not any(destination.iterdir()):
        destination.rmdir()
        os.rename(temporary, destination)
        return
    old = _sibling(destination, "old")
    try:
        os.rename(destination, old)
        os.rename(temporary, destination)
    except BaseException:
        if not destination.exists():
            os.rename(old, destination)
        raise
    finally:
        if destination.exists():
            shutil.rmtree(old, ignore_errors=True)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


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
