"""GGUF files byte by byte, so that they can be wrong in any way: what `gguf.GGUFWriter` refuses to write."""

from __future__ import annotations

import struct

UINT8, INT32, UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 0, 5, 4, 6, 7, 8, 9, 10


def text(content: bytes | str, size: int | None = None) -> bytes:
    """A string with its length, or with another `size` than it has."""
    raw = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(raw) if size is None else size) + raw


def field(key: bytes | str, kind: int, value: bytes) -> bytes:
    """A metadata key with its value."""
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    """An array that claims `count` entries."""
    return struct.pack("<IQ", kind, count) + values


def tensor(name: str, shape: tuple[int, ...], offset: int, kind: int = 0) -> bytes:
    """A tensor's entry; `shape` as in the file, the row length first."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf_file(
    fields: list[bytes], tensors: list[bytes], data: bytes = b"", counts: tuple[int, int] | None = None
) -> bytes:
    """A file; `counts`: numbers of tensors and of keys that it claims to have."""
    claimed = counts or (len(tensors), len(fields))
    header = b"GGUF" + struct.pack("<IQQ", 3, *claimed) + b"".join(fields) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data
