"""Texts to calibrate and evaluate on: any bytes."""

from __future__ import annotations

from pathlib import Path

from fuzz.mutate import raw_bytes
from fuzz.target import Target, overwrite

from spqt_ti.texts import check_disjoint, paragraph_hashes, read_text

WHOLE = "Ünïcode, naïve café, 日本語, and numbers.\r\n\r\nA second paragraph of more than forty characters.\n" * 3


def prepare(folder: Path) -> Target:
    path = folder / "t.txt"

    def read(raw: bytes) -> None:
        text = read_text(overwrite(path, raw))
        check_disjoint(text + "x", {"paragraphs": paragraph_hashes(text[:20]), "text_sha256": ""})

    return Target((WHOLE.encode(), b"\xff\xfea\0b\0", b"\xef\xbb\xbftext"), raw_bytes, read)
