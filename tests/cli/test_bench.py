"""`spqt bench decode`: what it prints, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_containers

from spqt_ti.cli.main import main
from spqt_ti.kernels.cpu import native
from spqt_ti.sparsity.policy import SparsityPolicy


@pytest.fixture(scope="module")
def model() -> str:
    return str(tiny_containers.container("gqa").path)


def test_json_rows(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--sparsity", "0,0.5", "--threads", "1", "--tokens", "8", "--rounds", "2", "--json"]
    assert main(["bench", "decode", model, *options]) == 0
    dense, sparse = json.loads(capsys.readouterr().out)
    assert {"model", "backend", "threads", "sparsity", "tokens_per_second", "rounds"} <= dense.keys()
    assert (dense["sparsity"], dense["realised_sparsity"], dense["speedup"]) == (0, 0, 1)
    assert (sparse["sparsity"], sparse["threads"], sparse["rounds"], sparse["tokens"]) == (0.5, 1, 2, 8)
    assert 0.2 < sparse["realised_sparsity"] < 0.8
    assert sparse["bytes_per_token"] < dense["bytes_per_token"]
    assert sparse["tokens_per_second"] > 0


def test_policies(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured beside the levels; thresholds nobody reaches skip everything."""
    container = tiny_containers.container("gqa")
    path = tmp_path / "p.json"
    SparsityPolicy("mine", 0.9, np.full((2, 4), 1e30, np.float32), container.fingerprint).save(path)
    options = ["--threads", "1", "--tokens", "4", "--rounds", "1", "--json", "--sparsity", "0", "--policy", str(path)]
    assert main(["bench", "decode", model, *options]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["method"], row["sparsity"], row["realised_sparsity"]) for row in rows] == [
        ("dense", 0, 0),
        ("mine", 0.9, 1),
    ]
    SparsityPolicy("mine", 0.9, np.ones((2, 4), np.float32), "another").save(path)
    assert main(["bench", "decode", model, *options]) == 1
    assert "made for model another" in capsys.readouterr().err
    assert main(["bench", "decode", model, "--profile", "--policy", str(path)]) == 1
    assert "--profile" in capsys.readouterr().err


def test_markdown(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["bench", "decode", model, "--sparsity", "0.3", "--tokens", "2", "--rounds", "1", "--threads", "1"]) == 0
    )
    header, rule, row, blank, what, where = capsys.readouterr().out.splitlines()
    assert header.count("|") == rule.count("|") == row.count("|")
    assert blank == ""
    assert ": 2 greedy tokens after" in what
    assert ", 1 thread, spqt-ti " in where


@pytest.mark.skipif(not native.available("x86_64"), reason="the kernel reads no clock without the native helpers")
def test_profile_adds_up(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--sparsity", "0,0.5", "--threads", "1", "--tokens", "4", "--profile", "--prompt-tokens", "20"]
    assert main(["bench", "decode", model, *options, "--json"]) == 0
    for row in json.loads(capsys.readouterr().out):
        assert row["position"] == 20
        assert sum(row["phases"].values()) == pytest.approx(row["seconds"])
        assert {phase for phase, seconds in row["phases"].items() if seconds > 0} >= {"gemv qkv", "gemv down", "head"}
        assert 0 < row["overhead"] < 1
    assert main(["bench", "decode", model, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| phase, us per token | 0% sparse | 50% sparse |"
    assert lines[-4].startswith("| neither GEMV nor head |")


@pytest.mark.parametrize(
    "options",
    [["--sparsity", "half"], ["--sparsity", "0,0"], ["--sparsity", "0,1.5"], ["--tokens", "0"], ["--rounds", "0"]],
)
def test_refused(model: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "decode", model, "--threads", "1", *options])
    assert caught.value.code == 2
    assert f"argument {options[0]}: " in capsys.readouterr().err


def test_levels_of_the_readme_by_default(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decode", model, "--tokens", "2", "--rounds", "1", "--threads", "1", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["sparsity"] for row in rows] == ["0.0", "0.25", "0.4", "0.5", "0.65"]
    assert "inputs_skipped.down" in rows[0]
