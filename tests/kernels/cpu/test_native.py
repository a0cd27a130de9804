"""The committed bitcode is what its readable source says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from spqt_ti.kernels.cpu import native


def _disassembled(bitcode: Path) -> str:
    """Text of a bitcode file without the lines that only name the file."""
    tool = shutil.which("llvm-dis-15")
    if tool is None:
        pytest.skip("llvm-dis-15 is not installed (Debian package llvm-15)")
    text = subprocess.run([tool, bitcode, "-o", "-"], check=True, capture_output=True, text=True).stdout
    return "\n".join(line for line in text.splitlines() if not line.startswith(("; ModuleID", "source_filename")))


@pytest.mark.parametrize("bitcode", sorted(Path(native.__file__).parent.glob("*.bc")), ids=lambda path: path.stem)
def test_bitcode_is_the_assembled_source(bitcode: Path, tmp_path: Path) -> None:
    tool = shutil.which("llvm-as-15")
    if tool is None:
        pytest.skip("llvm-as-15 is not installed (Debian package llvm-15)")
    source, fresh = bitcode.with_suffix(".ll"), tmp_path / "fresh.bc"
    command = [tool, "--opaque-pointers=0", source.name, "-o", fresh]
    subprocess.run(command, check=True, cwd=source.parent)
    # Another point release of LLVM 15 writes its own version into the file: then only the meaning counts.
    if fresh.read_bytes() != bitcode.read_bytes():
        assert _disassembled(fresh) == _disassembled(bitcode)
