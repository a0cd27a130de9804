"""A Hugging Face directory whose config.json is 200,000 opening brackets.

Other programs: Python's json raises RecursionError, which readers that expect ValueError pass on; so did an earlier
version of this package.
"""

from __future__ import annotations

from pathlib import Path


def make(folder: Path) -> list[Path]:
    """One directory."""
    path = folder / "deep"
    path.mkdir()
    (path / "config.json").write_text("[" * 200_000)
    return [path]
