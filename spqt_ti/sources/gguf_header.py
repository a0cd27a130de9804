"""The header of a GGUF file: metadata that are decoded only when somebody asks, and where each tensor lies.

Format: ggml's `docs/gguf.md`. Parsed here rather than by the `gguf` package, whose reader takes 2.3 s for SmolLM2's
vocabulary (one NumPy array per string) where this takes 0.1 s, and answers a damaged file with whatever NumPy raises.
What a hostile file could make large is compared with the file's size, or with a limit, before anything is allocated.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from spqt_ti.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_MAX_NAME = 256
_MAX_KEY = 65535
_MAX_TEXT = 64 << 20
_MAX_METADATA = 128 << 20
_MAX_FIELDS = 1 << 16
_MAX_TENSORS = 1 << 17
_MAX_STRINGS = 1 << 22  # of all arrays: the largest vocabularies have 0.3 million tokens and 0.6 million merges
_MAX_NESTING = 8
_MAX_ALIGNMENT = 1 << 20
_SCALARS: dict[GGUFValueType, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
    GGUFValueType.BOOL: np.dtype("?"),
}


@dataclass(frozen=True)
class GgufTensor:
    """One entry of the header. `shape` is [out, in] (the file has it reversed); `offset` counts from byte 0."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    path: Path

    @property
    def row_bytes(self) -> int:
        block, size = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // block * size

    @property
    def nbytes(self) -> int:
        return self.row_bytes * math.prod(self.shape[:-1])


class Metadata(Mapping[str, Any]):
    """Key -> a str, bool, int, float, list of str or NumPy array, decoded on access.

    So text in keys that nobody needs may be in any encoding. CheckpointError for a value that cannot be decoded.
    """

    def __init__(self, path: Path, data: bytes, offsets: Mapping[str, tuple[GGUFValueType, int]]) -> None:
        self._path, self._data, self._offsets = path, data, offsets

    def __getitem__(self, key: str) -> Any:
        kind, start = self._offsets[key]
        return _Cursor(self._path, self._data, start).value(kind, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._offsets)

    def __len__(self) -> int:
        return len(self._offsets)

    def __contains__(self, key: object) -> bool:
        return key in self._offsets


def read_header(path: Path) -> tuple[Metadata, dict[str, GgufTensor]]:
    """Metadata and tensors of one file; CheckpointError unless every tensor lies in the file, apart from all others."""
    with open(path, "rb", opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        if status.st_size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Header(path, data).parse()


def _open_without_waiting(path: str, flags: int) -> int:
    """A pipe without a writer would be waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class _Cursor:
    """Reads one value after another. Everything raised is a CheckpointError that names the file."""

    def __init__(self, path: Path, data: bytes | mmap.mmap, position: int = 0) -> None:
        self.path, self.data, self.position = path, data, position

    def take(self, size: int, what: str) -> bytes:
        start = self.position
        self.skip(size, what)
        return self.data[start : self.position]

    def skip(self, size: int, what: str) -> None:
        if size > len(self.data) - self.position:
            raise CheckpointError(
                f"{self.path}: truncated in the header: {what} needs {size} bytes at byte {self.position}, "
                f"the file has {len(self.data)}"
            )
        self.position += size

    def number(self, form: str, what: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form), what))[0])

    def text(self, what: str, longest: int = _MAX_TEXT) -> bytes:
        size = self.number("<Q", what)
        if longest < size <= len(self.data):
            raise self.damaged(f"{what} has {size} bytes, more than {longest}")
        return self.take(size, what)

    def kind(self, key: str) -> GGUFValueType:
        number = self.number("<I", key)
        try:
            return GGUFValueType(number)
        except ValueError as error:
            raise self.damaged(f"{key} has the unknown type {number}") from error

    def value(self, kind: GGUFValueType, key: str) -> Any:
        if kind == GGUFValueType.STRING:
            return self.decoded(key)
        if kind == GGUFValueType.ARRAY:
            return self.array(key)
        dtype = _SCALARS[kind]
        return np.frombuffer(self.take(dtype.itemsize, key), dtype)[0].item()

    def decoded(self, key: str) -> str:
        try:
            return self.text(key).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"{key} is not UTF-8 ({error})") from error

    def array(self, key: str) -> Any:
        kind, count = self.kind(key), self.number("<Q", key)
        if kind == GGUFValueType.STRING:
            return [self.decoded(key) for _ in range(count)]
        if kind == GGUFValueType.ARRAY:
            raise CheckpointError(f"{self.path}: {key} is an array of arrays, which is not supported")
        return np.frombuffer(self.take(_SCALARS[kind].itemsize * count, key), _SCALARS[kind])

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: damaged: {what}")


class _Header(_Cursor):
    """Walks over a whole header; values are stepped over, not decoded."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        super().__init__(path, data)
        self.strings = 0

    def parse(self) -> tuple[Metadata, dict[str, GgufTensor]]:
        if self.data[:4] != _MAGIC:
            found = self.data[:4]
            raise CheckpointError(f"{self.path}: not a GGUF file (it starts with {found!r}, expected {_MAGIC!r})")
        self.position = 4
        version = self.number("<I", "version")
        if version not in _VERSIONS:
            raise CheckpointError(
                f"{self.path}: GGUF version {version} is not supported, expected 2 or 3 (little-endian)"
            )
        tensor_count, field_count = self.number("<Q", "tensor count"), self.number("<Q", "metadata count")
        for count, most, what in ((tensor_count, _MAX_TENSORS, "tensors"), (field_count, _MAX_FIELDS, "metadata keys")):
            if count > most:
                raise self.damaged(f"{count} {what}, more than {most}")
        offsets = self.offsets(field_count)
        if self.position > _MAX_METADATA:
            raise self.damaged(f"the metadata have {self.position} bytes, more than {_MAX_METADATA}")
        # A copy: the file may be closed, or written anew, before a value is wanted.
        metadata = Metadata(self.path, self.data[: self.position], offsets)
        entries = [self.entry() for _ in range(tensor_count)]
        return metadata, self.placed(entries, metadata.get("general.alignment", 32))

    def offsets(self, count: int) -> dict[str, tuple[GGUFValueType, int]]:
        """Key -> type and position of every value; the position is then behind the last."""
        offsets: dict[str, tuple[GGUFValueType, int]] = {}
        for _ in range(count):
            key = _printable(self.text("a metadata key", _MAX_KEY))
            if key in offsets:
                raise self.damaged(f"the metadata key {key[:80]} is there twice")
            kind = self.kind(key)
            offsets[key] = (kind, self.position)
            self.step_over(kind, key)
        return offsets

    def step_over(self, kind: GGUFValueType, key: str, depth: int = 0) -> None:
        if kind == GGUFValueType.STRING:
            self.skip(self.number("<Q", key), key)
        elif kind != GGUFValueType.ARRAY:
            self.skip(_SCALARS[kind].itemsize, key)
        elif depth == _MAX_NESTING:
            raise self.damaged(f"{key} nests arrays deeper than {_MAX_NESTING} levels")
        else:
            self.step_over_array(key, depth)

    def step_over_array(self, key: str, depth: int) -> None:
        kind, count = self.kind(key), self.number("<Q", key)
        if kind in _SCALARS:
            self.skip(_SCALARS[kind].itemsize * count, key)
            return
        self.strings += count
        if self.strings > _MAX_STRINGS:
            raise self.damaged(f"{key} brings the strings of all arrays to {self.strings}, more than {_MAX_STRINGS}")
        if kind == GGUFValueType.ARRAY:
            for _ in range(count):
                self.step_over(kind, key, depth + 1)
            return
        # The one loop that is run a million times.
        data, position, size_of = self.data, self.position, struct.Struct("<Q").unpack_from
        end = len(data) - 8
        for _ in range(count):
            if position > end:
                break
            position += 8 + size_of(data, position)[0]
        else:
            self.skip(position - self.position, key)
            return
        self.skip(max(position, end + 1) + 8 - self.position, key)  # raises

    def entry(self) -> GgufTensor:
        """One tensor's entry, its offset still counted from the start of the data."""
        name = self.name()
        dimensions = self.number("<I", name)
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self.damaged(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(self.number("<Q", name) for _ in range(dimensions))[::-1]
        number = self.number("<I", name)
        try:
            kind = GGMLQuantizationType(number)
            block = GGML_QUANT_SIZES[kind][0]
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{self.path}: tensor {name} has the unknown type {number}") from error
        if not all(shape) or shape[-1] % block:
            raise self.damaged(f"tensor {name} of type {kind.name} has shape {list(shape)}")
        return GgufTensor(name, shape, kind, self.number("<Q", name), self.path)

    def name(self) -> str:
        """A tensor's name, which may go into messages."""
        try:
            name = self.text("a tensor name").decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"a tensor name is not UTF-8 ({error})") from error
        if len(name) > _MAX_NAME or not name.isprintable():
            raise self.damaged(f"a tensor name is {name[:40]!r}")
        return name

    def placed(self, entries: list[GgufTensor], alignment: Any) -> dict[str, GgufTensor]:
        """The entries with offsets from byte 0: the data begin at the next aligned byte after the header."""
        whole = isinstance(alignment, int) and not isinstance(alignment, bool)
        if not whole or not 0 < alignment <= _MAX_ALIGNMENT or alignment % 8:
            raise CheckpointError(f"{self.path}: general.alignment is {alignment!r:.80}, expected a multiple of 8")
        start = -(-self.position // alignment) * alignment
        tensors = {e.name: GgufTensor(e.name, e.shape, e.kind, start + e.offset, e.path) for e in entries}
        if len(tensors) != len(entries):
            raise self.damaged("two tensors have the same name")
        self.check_extents(tensors, alignment)
        return tensors

    def check_extents(self, tensors: Mapping[str, GgufTensor], alignment: int) -> None:
        """No tensor shares bytes with another, or a small file could ask for any amount of work."""
        previous: GgufTensor | None = None
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
            end = tensor.offset + tensor.nbytes
            if end > len(self.data):
                raise CheckpointError(
                    f"{self.path}: truncated: tensor {tensor.name} ends at byte {end}, "
                    f"the file has only {len(self.data)} bytes"
                )
            if tensor.offset % alignment:
                raise self.damaged(f"tensor {tensor.name} begins at byte {tensor.offset}, no multiple of {alignment}")
            if previous is not None and tensor.offset < previous.offset + previous.nbytes:
                raise self.damaged(f"tensors {previous.name} and {tensor.name} overlap")
            previous = tensor


def _printable(raw: bytes) -> str:
    """A key as it may go into messages, whatever its encoding."""
    text = raw.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else repr(text)[1:-1]
