"""Texts: bad files are refused by name, and shared paragraphs are found."""

from __future__ import annotations

import hashlib

import pytest

from spqt_ti.errors import PolicyError
from spqt_ti.texts import check_disjoint, paragraph_hashes, read_text

ONE, TWO = "The first paragraph is long enough to count.", "The second paragraph is long enough to count too."


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b" \n\t", "empty"), (b"\xff\xfe\x00", "UTF-8"), (b"text\x00text", "NUL")],
)
def test_what_is_no_text(tmp_path, content, message):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(PolicyError, match=message) as caught:
        read_text(path)
    assert str(path) in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(PolicyError, match=r"none\.txt"):
        read_text(tmp_path / "none.txt")


def test_paragraphs():
    assert paragraph_hashes(f"{ONE}\n\n{TWO}\n\nShort.") == paragraph_hashes(f"{TWO}\n\n{ONE.replace(' ', chr(10))}")
    assert len(paragraph_hashes(f"{ONE}\n\n{ONE}\n\n{TWO}")) == 2


def test_overlap():
    calibration = {"text_sha256": hashlib.sha256(b"short").hexdigest(), "paragraphs": paragraph_hashes(ONE)}
    check_disjoint(TWO, calibration)
    check_disjoint(ONE, {})
    with pytest.raises(PolicyError, match="is the text"):
        check_disjoint("short", calibration)
    with pytest.raises(PolicyError, match="shares 1 paragraphs"):
        check_disjoint(f"{TWO}\n\n{ONE}", calibration)
