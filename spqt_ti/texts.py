"""Texts to calibrate and to evaluate on: read with clear errors, and compared so that the two do not overlap."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spqt_ti.bounded_json import read_bytes
from spqt_ti.errors import PolicyError, SpqtError

_MOST_BYTES = 1 << 30
SHORTEST = 40  # characters: shorter paragraphs (headings, "Thank you.") occur in unrelated texts


def read_text(path: str | Path, error: type[SpqtError] = PolicyError) -> str:
    """A UTF-8 text file, `~` allowed; line ends become "\n". Raises `error` where it cannot be read, is binary, no
    regular file, larger than 1 GiB, or holds nothing but blanks.
    """
    try:
        text = read_bytes(Path(path).expanduser(), _MOST_BYTES).decode("utf-8")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    except (ValueError, RuntimeError) as problem:  # RuntimeError: a home folder that nobody has
        raise error(f"{path}: cannot be read as UTF-8 text: {problem}") from problem
    if "\0" in text:
        raise error(f"{path}: holds NUL characters, so it is no text")
    if not text.strip():
        raise error(f"{path}: the text is empty")
    return text


def sha256(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, in hexadecimal: its identity in policies, calibrations and containers."""
    return hashlib.sha256(text.encode()).hexdigest()


def paragraph_hashes(text: str) -> list[str]:
    """Sorted hashes of a text's paragraphs, blanks evened out: what two texts share, whole files or parts, shows."""
    paragraphs = {" ".join(p.split()) for p in text.split("\n\n")}
    return sorted({hashlib.sha256(p.encode()).hexdigest()[:12] for p in paragraphs if len(p) >= SHORTEST})


def check_disjoint(text: str, calibration: Mapping[str, Any], use: str = "the policy was calibrated on") -> None:
    """Raise PolicyError if `text` is what `calibration` says something was made with, or shares a paragraph with it;
    `use` says what.
    """
    same = calibration.get("text_sha256") == sha256(text)
    paragraphs = calibration.get("paragraphs", [])
    if not isinstance(paragraphs, list | tuple) or not all(isinstance(p, str) for p in paragraphs):
        raise PolicyError("calibration paragraphs are no list of hashes, so overlaps cannot be seen")
    shared = set(paragraphs) & set(paragraph_hashes(text))
    if same or shared:
        what = "is the text" if same else f"shares {len(shared)} paragraphs with the text"
        raise PolicyError(f"the evaluation text {what} that {use}; take another one")
