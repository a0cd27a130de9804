"""A short run of every fuzz target, always with the same inputs; `python tests/fuzz/run.py` runs them for long."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fuzz import run
from fuzz.run import READERS, fuzz

INPUTS = {"template": 150, "packed": 250}
NEEDS = {"server": ("msgspec", "starlette", "llguidance"), "hub": ("huggingface_hub",)}


@pytest.mark.parametrize("reader", READERS)
def test_nothing_but_errors_of_the_project(reader, monkeypatch):
    monkeypatch.setenv("SPQT_CACHE_DIR", "")  # the target sets its own; this puts the old one back
    for module in NEEDS.get(reader, ()):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install '.[server,constrained,hub]'")
    report = fuzz(reader, INPUTS.get(reader, 500), 20.0)
    assert report.inputs > 10
    assert report.accepted
    assert report.refused
    wrong = [what for what in report.findings if not what.endswith(" s")]  # other processes take time too
    assert not wrong


def test_a_long_run_is_gone_on_with(tmp_path):
    command = [sys.executable, run.__file__, "policy", "--state", str(tmp_path)]
    for inputs in (100, 200):
        done = subprocess.run([*command, "--inputs", str(inputs)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        row = done.stdout.splitlines()[1].split()
        assert row[0] == "policy"
        assert inputs <= int(row[1]) < inputs + 50  # inputs that were kept are read once more
    assert list((tmp_path / "policy" / "corpus").iterdir())
