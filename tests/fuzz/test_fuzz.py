"""A short run of every fuzz target, always with the same inputs; `python tests/fuzz/run.py` runs them for long."""

from __future__ import annotations

import pytest
from fuzz.run import READERS, fuzz

INPUTS = {"container": 60, "tokenizer": 60}


@pytest.mark.parametrize("reader", READERS)
def test_nothing_but_errors_of_the_project(reader, monkeypatch):
    monkeypatch.setenv("SPQT_CACHE_DIR", "")  # the target sets its own; this puts the old one back
    if reader == "container":
        pytest.importorskip("taichi", reason="quantises a small model first")
    report = fuzz(reader, INPUTS.get(reader, 120), 20.0)
    assert report.inputs > 10
    wrong = [finding for finding in report.findings if not finding[1].endswith(" s")]  # other processes take time too
    assert not wrong
