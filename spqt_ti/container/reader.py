"""Opens a container and reads its tensors. Knows nothing of kernels: what it reads back is formats' NumPy."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from spqt_ti import bounded_json
from spqt_ti.bounded_json import JsonError
from spqt_ti.container.directories import restore
from spqt_ti.container.manifest import CONFIG, INDEX, MANIFEST, MOST_BYTES, TOKENIZER, Manifest, Source, damaged
from spqt_ti.container.matrices import (
    DEFAULT_STORAGE,
    DTYPES,
    EMBEDDING,
    HEAD,
    ExtraTensor,
    MatrixInfo,
    TensorInfo,
    expected_tensors,
    matrix_name,
)
from spqt_ti.errors import CheckpointError, ContainerError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats.scheme import F32Array, U8Array
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.sites import SITES, Site

__all__ = ["Container", "reported", "sha256_of"]

_HASH_CHUNK = 1 << 20
_ATTEMPTS = 3  # to open a directory that is replaced meanwhile


@dataclass(frozen=True)
class Container:
    """An opened container. Opening reads headers (and, to verify, every byte once); tensors are mapped when read."""

    path: Path
    config: ModelConfig
    source: Source
    transformations: tuple[Mapping[str, Any], ...]
    version: int
    fingerprint: str  # of all files' checksums: two containers with the same one are the same model
    chat_template: str | None = field(repr=False)
    tokenizer_json: str = field(repr=False)
    matrices: Mapping[str, MatrixInfo] = field(repr=False)
    extra: Mapping[str, ExtraTensor] = field(repr=False)
    _extents: Mapping[str, _Extent] = field(repr=False)

    @classmethod
    def open(cls, directory: str | Path, verify: bool = True) -> Container:
        """Open and check a container: version, files, sizes, tensors and, with `verify`, every SHA-256.

        ContainerError names the file or tensor, what was expected, what was found, and what to do.
        """
        path = Path(directory).expanduser()
        with reported(path, "cannot be read"):
            restore(Path(os.path.realpath(path)))
            for attempt in range(_ATTEMPTS):
                before = _identity(path)
                try:
                    found = _open(path, verify)
                except (ContainerError, OSError):
                    if attempt == _ATTEMPTS - 1 or _identity(path) == before:
                        raise
                else:
                    if _identity(path) == before:
                        return found
            raise ContainerError(f"{path}: it is replaced again and again; try again when that is over")

    def names(self) -> list[str]:
        """Names of all stored tensors."""
        return list(self._extents)

    def matrix(self, layer: int, site: Site) -> MatrixInfo:
        """The matrix that reads a site's inputs. ContainerError for a layer that the model has not."""
        name = matrix_name(layer, site)
        if name not in self.matrices:
            raise ContainerError(f"{self.path}: there is no layer {layer}, only {self.config.num_hidden_layers}")
        return self.matrices[name]

    @property
    def embedding(self) -> MatrixInfo:
        """The embedding, [vocabulary, hidden]."""
        return self.matrices[EMBEDDING]

    @property
    def head(self) -> MatrixInfo:
        """The matrix that makes logits, [vocabulary, hidden]: the embedding where the two are tied."""
        return self.matrices.get(HEAD, self.embedding)

    def layer_matrices(self) -> list[MatrixInfo]:
        """The matrices of all layers, in the order in which a forward pass uses them."""
        return [matrix for name, matrix in self.matrices.items() if name not in (EMBEDDING, HEAD)]

    def bias(self, layer: int, site: Site) -> F32Array | None:
        """Bias f32 [rows] of a site's matrix; None where the model has none."""
        name = f"{self.matrix(layer, site).name}.bias"
        return self.read(name) if name in self._extents else None

    def read_matrix(self, matrix: MatrixInfo) -> U8Array:
        """Stored bytes u8 [nbytes] of a matrix, mapped read-only: nothing is read before it is used."""
        return self.read(matrix.tensor).reshape(-1)

    def read(self, name: str) -> npt.NDArray[Any]:
        """A stored tensor, mapped read-only. ContainerError where the model was replaced since it was opened."""
        if name not in self._extents:
            raise ContainerError(f"{self.path}: there is no tensor {name}")
        extent = self._extents[name]
        with reported(extent.file, "cannot be read"), open(extent.file, "rb") as stream:
            if _signature(stream.fileno()) != extent.signature:
                raise ContainerError(f"{extent.file}: the model was replaced after it was opened; open it again")
            mapped = np.memmap(stream, extent.info.dtype, "r", extent.offset, extent.info.shape)
        return np.asarray(mapped)

    def dequantize(self, which: str | MatrixInfo) -> F32Array:
        """f32 [rows, cols] of a matrix or, by its name, of one projection of it; `lm_head` may be tied."""
        matrix, rows = self._find(which if isinstance(which, str) else which.name)
        data = self.read_matrix(matrix)
        return layouts.dequantize_matrix(data, matrix.rows, matrix.cols, matrix.layout, matrix.scheme)[rows]

    def row_bytes(self, name: str) -> U8Array:
        """Bytes u8 [rows, bytes] of a projection or matrix as ggml stores them in a GGUF file.

        ContainerError unless the layout is `row`: zigzag superblocks hold other weights together, so ggml's bytes
        cannot be had from them.
        """
        matrix, rows = self._find(name)
        if matrix.layout != "row":
            raise ContainerError(
                f"{self.path}: ggml's bytes need the row layout, and {matrix.name} is {matrix.layout}; quantise with "
                "--layout row"
            )
        return self.read_matrix(matrix).reshape(matrix.rows, -1)[rows]

    def weights(self) -> Iterator[tuple[str, F32Array]]:
        """Hugging Face name and f32 values of every tensor, dequantised: the model that decoding computes with."""
        owners = {part: matrix for matrix in self.matrices.values() for part in matrix.projections()}
        for name in self.config.tensor_shapes():
            stem, _, kind = name.rpartition(".")
            if stem not in owners:
                yield name, self.read(name)
            elif kind == "bias":
                yield name, self.read(f"{owners[stem].name}.bias")[owners[stem].projections()[stem]]
            else:
                yield name, self.dequantize(stem)

    def storage(self) -> dict[str, str]:
        """Class of matrix -> "scheme, layout" of all of its matrices, the most frequent first."""
        found: dict[str, dict[str, int]] = {}
        for layer in range(self.config.num_hidden_layers):
            for site in Site:
                count = found.setdefault(site.label, {})
                how = str(self.matrix(layer, site).storage)
                count[how] = count.get(how, 0) + 1
        found |= {"embedding": {str(self.embedding.storage): 1}, "head": {str(self.head.storage): 1}}
        return {kind: "; ".join(sorted(count, key=lambda how: -count[how])) for kind, count in found.items()}

    def summary(self) -> str:
        """Scheme and layout in a few words: those of most sites, then the classes that differ from it."""
        storage = self.storage()
        sites = [storage[site] for site in SITES]
        usual = max(dict.fromkeys(sites), key=sites.count)
        others = [
            f"{kind} {how}"
            for kind, how in storage.items()
            if how != (usual if kind in SITES else str(DEFAULT_STORAGE[kind]))
        ]
        return "; ".join([usual, *others])

    def _find(self, name: str) -> tuple[MatrixInfo, slice]:
        """The matrix of this name, or the one with this projection, and the rows that are meant."""
        if name == HEAD:
            name = self.head.name
        if name in self.matrices:
            return self.matrices[name], slice(0, self.matrices[name].rows)
        for matrix in self.matrices.values():
            rows = matrix.projections().get(name)
            if rows is not None:
                return matrix, rows
        raise ContainerError(f"{self.path}: there is no matrix {name}")


_Signature = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Extent:
    """Where a tensor's bytes are, and how to know the file again."""

    file: Path
    signature: _Signature
    offset: int
    info: TensorInfo


def _open(path: Path, verify: bool) -> Container:
    file = path / MANIFEST
    hint = "expected a quantised model (spqt quantize SOURCE DESTINATION makes one)"
    if not path.is_dir():
        found = "not a directory" if path.exists() else "no such directory"
        raise ContainerError(f"{path}: {found}, {hint}")
    if not file.exists():
        raise ContainerError(f"{path}: {MANIFEST} is missing, {hint}")
    manifest = Manifest.read(file)
    signatures = _check_files(path, manifest, verify)
    config = _read_config(path)
    manifest.check_rotation(file, config)
    matrices = manifest.matrices_of(file, config)
    expected = expected_tensors(config, matrices, manifest.extra)
    return Container(
        path=path,
        config=config,
        source=manifest.source,
        transformations=manifest.transformations,
        version=manifest.version,
        fingerprint=manifest.fingerprint,
        chat_template=manifest.chat_template,
        tokenizer_json=_read_text(path / TOKENIZER),
        matrices=matrices,
        extra={tensor.name: tensor for tensor in manifest.extra},
        _extents=_read_extents(path, signatures, expected),
    )


def _check_files(path: Path, manifest: Manifest, verify: bool) -> dict[str, _Signature]:
    """Signatures of all files; sizes are compared before checksums: what is cheap to find is found first."""
    signatures = {}
    for name, (size, _) in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise damaged(file, "the file is missing")
        signatures[name] = _signature(file)
        if signatures[name][2] != size:
            raise damaged(file, f"truncated or changed: it has {signatures[name][2]:,} bytes, expected {size:,}")
    for name, (_, sha256) in manifest.files.items() if verify else ():
        found = sha256_of(path / name)
        if found != sha256:
            raise damaged(path / name, f"checksum mismatch: SHA-256 is {found[:16]}..., expected {sha256[:16]}...")
    return signatures


def _read_config(path: Path) -> ModelConfig:
    try:
        return ModelConfig.from_dict(_read_json(path / CONFIG))
    except CheckpointError as error:
        raise ContainerError(f"{path / CONFIG}: {error}") from error


def _read_extents(
    path: Path, signatures: Mapping[str, _Signature], expected: Mapping[str, TensorInfo]
) -> dict[str, _Extent]:
    """Place of every expected tensor, in that order; ContainerError for one missing, other, or too many."""
    weight_map = _read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise damaged(path / INDEX, "weight_map is missing")
    found: dict[str, _Extent] = {}
    for shard in sorted({name for name in weight_map.values() if isinstance(name, str)}):
        if shard not in signatures:
            raise damaged(path / INDEX, f"it names {shard!r}, a file that {MANIFEST} does not list")
        found |= _read_header(path / shard, signatures[shard])
    for name, info in expected.items():
        file = path / str(weight_map.get(name, INDEX))
        if name not in found or found[name].file != file:
            raise damaged(file, f"tensor {name} is missing, expected {info}")
        if found[name].info != info:
            raise damaged(file, f"tensor {name} is {found[name].info}, expected {info}")
    for name, extent in found.items():
        if name not in expected:
            raise damaged(extent.file, f"tensor {name} is not part of this model")
    return {name: found[name] for name in expected}


def _read_header(file: Path, signature: _Signature) -> dict[str, _Extent]:
    """Tensors of one safetensors file; its library verifies that the header fits the file."""
    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        raise damaged(file, f"not a whole safetensors file ({error})") from error
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        try:
            header = bounded_json.parse_object(stream.read(size))
        except JsonError as error:
            raise damaged(file, f"not a whole safetensors file ({error})") from error
    header.pop("__metadata__", None)
    return {name: _extent(file, signature, 8 + size, name, entry) for name, entry in header.items()}


def _extent(file: Path, signature: _Signature, data_start: int, name: str, entry: Mapping[str, Any]) -> _Extent:
    if entry["dtype"] not in DTYPES:
        raise damaged(file, f"tensor {name} is {entry['dtype']}, expected one of: {', '.join(DTYPES)}")
    info = TensorInfo(DTYPES[entry["dtype"]], tuple(entry["shape"]))
    return _Extent(file, signature, data_start + entry["data_offsets"][0], info)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return bounded_json.read_object(file, MOST_BYTES)
    except JsonError as error:
        raise damaged(file, str(error)) from error


def _read_text(file: Path) -> str:
    try:
        return bounded_json.read_bytes(file).decode("utf-8")
    except (JsonError, UnicodeDecodeError) as error:
        raise damaged(file, f"not readable as text ({error})") from error


def _signature(file: Path | int) -> _Signature:
    """What tells a file from the one that replaces it."""
    status = os.stat(file)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a directory from the one that takes its name; None for none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def reported(path: Path, what: str) -> Iterator[None]:
    """Turn what the system says into a ContainerError of one line."""
    try:
        yield
    except OSError as error:
        raise ContainerError(f"{path}: {what} ({error.strerror or error})") from error
    except SafetensorError as error:  # its writer wraps the system's errors
        raise ContainerError(f"{path}: {what} ({error})") from error


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
