"""GGUF headers whose counts and lengths are near 2^64.

Other programs: llama.cpp multiplied them without a check and wrote past its heap (CVE-2024-21836, CVE-2024-23605,
CVE-2024-21802, CVE-2024-21825); it refuses them since.
"""

from __future__ import annotations

from pathlib import Path

from gguf_bytes import ARRAY, STRING, array, field, gguf_file, tensor, text


def make(folder: Path) -> list[Path]:
    """One file for each count."""
    one, data = [tensor("a", (32,), 0)], bytes(128)
    contents = {
        "tensors": gguf_file([], one, data, counts=(2**62, 0)),
        "keys": gguf_file([], one, data, counts=(1, 2**62)),
        "string": gguf_file([field("k", STRING, text("x", 2**64 - 1))], one, data),
        "array": gguf_file([field("k", ARRAY, array(STRING, 2**61))], one, data),
        "shape": gguf_file([], [tensor("a", (2**32, 2**32), 0)], data),
    }
    return [_write(folder / f"{name}.gguf", content) for name, content in contents.items()]


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
