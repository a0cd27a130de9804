"""A GGUF file of half a megabyte with thousands of tensors in the same bytes: converting it makes a file of any size.

Other programs: llama.cpp refuses tensors that are not one behind the other; an earlier version of this package took
them.
"""

from __future__ import annotations

from pathlib import Path

from gguf_bytes import gguf_file, tensor


def make(folder: Path) -> list[Path]:
    """One file."""
    path = folder / "overlap.gguf"
    path.write_bytes(
        gguf_file([], [tensor(f"blk.{i}.ffn_up.weight", (256, 256), 0) for i in range(4000)], bytes(2**18))
    )
    return [path]
