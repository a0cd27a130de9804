"""Backends side by side, each in a process of its own: agreement, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_containers

from spqt_ti.benchmark import compare as module
from spqt_ti.benchmark.compare import Row, compare, devices, table
from spqt_ti.cli import main as cli
from spqt_ti.errors import BackendError

WORKS = 6


@pytest.fixture(scope="module")
def path() -> Path:
    return tiny_containers.container("gqa").path


def check(rows: list[Row], backends: list[str]) -> None:
    """Every result is that of the first backend, to f32 rounding."""
    assert [row.backend for row in rows] == backends * WORKS
    for row in rows:
        assert row.difference is None or row.difference < 1e-5
        assert row.agree == row.of
        assert row.milliseconds > 0
    assert rows[-1].of == 20


def test_the_cpu_alone(path: Path) -> None:
    rows = compare(path, ["cpu"], tokens=20)
    check(rows, ["cpu"])
    assert {row.difference for row in rows} == {None, 0.0}
    assert len(table(rows).rows) == WORKS
    assert table(rows).rows[-1][3] == "20 of 20"
    assert devices(rows)[0].startswith("cpu: ")


@pytest.mark.threadgroups
def test_this_backend_and_the_cpu(path: Path, backend_name: str) -> None:
    check(compare(path, ["cpu", backend_name], tokens=20), ["cpu", backend_name])


def test_disagreement_is_counted() -> None:
    logits = np.float32([[1, 2], [4, 3]])
    both = module._Work("", True, True)
    assert module._agreement(both, logits + np.float32([[0, 0], [0, 2]]), logits) == (0.5, 1, 2)
    leading = module._Work("", False, True, leading=True)
    assert module._agreement(leading, np.array([1, 2, 9, 4]), np.array([1, 2, 3, 4])) == (None, 2, 4)
    sets = module._Work("", False, True)
    assert module._agreement(sets, np.array([1, 2]), np.array([1, 2, 3])) == (None, 0, 1)


def test_refused(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendError, match="'opengl' is not available"):
        compare(path, ["cpu", "opengl"])
    if sys.platform != "darwin":
        with pytest.raises(BackendError, match="metal: needs macOS"):
            compare(path, ["metal"])
    monkeypatch.setattr(module, "compare", lambda *_: [Row("w", "cpu", "d", None, 1, 1, 2.0)])
    assert cli.main(["compare", "smollm2-135m", "--backends", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["milliseconds"] == 2.0
