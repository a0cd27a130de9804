"""Long work says how far it is, on a terminal and elsewhere."""

from __future__ import annotations

import logging
import sys
import time

import pytest

from spqt_ti import progress as module
from spqt_ti.progress import progress, says_if_slow


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into `caplog` alone: a command that ran before in this process prints what the package logs."""
    monkeypatch.setattr(logging.getLogger("spqt_ti"), "handlers", [])
    caplog.set_level(logging.INFO, "spqt_ti")


def test_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.01)
    for _ in progress(range(3), desc="TEAL", unit="layers"):
        time.sleep(0.02)
    assert [line.split(",")[0] for line in caplog.messages] == [f"TEAL: {n} of 3 layers" for n in (1, 2, 3)]
    assert capsys.readouterr().err == ""


def test_short_work_is_quiet(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(total=2e6, desc="quantise", unit="w", unit_scale=True) as bar:
        bar.update(1e6)
    assert list(progress(range(3), desc="x")) == [0, 1, 2]
    assert not caplog.messages
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress(range(2), desc="TEAL")) == [0, 1]
    assert "TEAL:   0%" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "messages"), [(0.01, ["compiling"]), (60, [])])
def test_what_takes_long_is_said(seconds: float, messages: list[str], caplog: pytest.LogCaptureFixture) -> None:
    module._said.clear()
    for _ in range(2):
        with says_if_slow("compiling", seconds):
            time.sleep(0.05)
    time.sleep(0.02)
    assert caplog.messages == messages
