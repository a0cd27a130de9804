"""Tables for people, for pipes and for spreadsheets."""

from __future__ import annotations

import csv
import io
import sys

import pytest

from spqt_ti.tables import GrowingTable, Table, csv_text, print_table

TABLE = Table(
    ["policy", "MB per token", "of read bandwidth"],
    [("dense", "91.2", "58%"), ("a|b\x1b[31m", "5.0", "")],
)


def terminal(monkeypatch: pytest.MonkeyPatch, yes: bool) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: yes)


def test_markdown() -> None:
    assert TABLE.markdown().splitlines() == [
        "| policy | MB per token | of read bandwidth |",
        "|---|---|---|",
        "| dense | 91.2 | 58% |",
        "| a\\|b [31m | 5.0 |  |",
    ]


def test_aligned() -> None:
    """Words of titles below each other, numbers to the right, nothing wider than it must be."""
    assert TABLE.aligned().splitlines() == [
        "             MB",
        "            per    of read",
        "policy    token  bandwidth",
        "--------------------------",
        "dense      91.2        58%",
        "a|b [31m    5.0",
    ]


def test_where_it_goes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal(monkeypatch, False)
    print_table(TABLE, "a note")
    assert capsys.readouterr().out == TABLE.markdown() + "\n\na note\n"
    terminal(monkeypatch, True)
    monkeypatch.setenv("COLUMNS", "20")
    print_table(TABLE, "a note that is longer than the line")
    assert capsys.readouterr().out == TABLE.aligned() + "\n\na note that is\n  longer than the\n  line\n"


@pytest.mark.parametrize("yes", [False, True])
def test_growing(yes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows before an interruption are not lost."""
    terminal(monkeypatch, yes)
    table = Table(TABLE.titles, TABLE.rows[:1])

    def interrupted() -> None:
        with GrowingTable(table.titles) as growing:
            growing.add(table.rows[0])
            assert capsys.readouterr().out == ("" if yes else table.markdown() + "\n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capsys.readouterr().out == (table.aligned() + "\n" if yes else "")


def test_csv() -> None:
    rows = [{"method": "a, b", "skipped": [{"qkv": 0.25}, {"qkv": 0.5}]}, {"method": "dense", "file": None}]
    first, second = csv.DictReader(io.StringIO(csv_text(rows)))
    assert first == {"method": "a, b", "skipped.0.qkv": "0.25", "skipped.1.qkv": "0.5", "file": ""}
    assert (second["method"], second["skipped.0.qkv"]) == ("dense", "")
