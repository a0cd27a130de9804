"""spqt allocate: plans, policies, and what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_containers

from spqt_ti.cli import allocate, main
from spqt_ti.sparsity.allocate import static, tables
from spqt_ti.sparsity.policy import SparsityPolicy

TEXT = "\n\n".join(f"The quick brown fox number {i} jumps over the lazy dog, again." for i in range(20))


def run(capsys, tmp_path: Path, *more: object, code: int = 0) -> str:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    model = tiny_containers.container("gqa").path
    common = ("--text", text, "-o", tmp_path / "out.json", "--checkpoints", tmp_path / "kept", "--windows", 1)
    arguments = ["allocate", model, *common, *more]
    assert main.main([str(argument) for argument in arguments]) == code
    output = capsys.readouterr()
    return output.err if code else output.out


def test_choices_are_those_there_are() -> None:
    assert set(allocate.MODES) == set(static.MODES)
    assert allocate.MEASURES == tables.MEASURES


def test_a_plan(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(static, "WINDOW", 30)
    rates = ("--alpha", 0.2, "--beta", 0.4, "--rate-step", 0.2, "--delta-max", 0.9, "--jobs", 1)
    report = json.loads(run(capsys, tmp_path, *rates, "--json"))
    plan = json.loads((tmp_path / "out.json").read_text())
    assert report["groups"] == [[g["first"], g["layers"], g["rate"]] for g in plan["groups"]]
    assert plan["delta_max"] == 0.9
    assert "on unseen windows" in run(capsys, tmp_path, *rates)


def test_a_policy(capsys, tmp_path: Path) -> None:
    run(capsys, tmp_path, "--dynamic", "--mode", "least-sum", "--sparsity", 0.4, "--jobs", 1)
    made = SparsityPolicy.load(tmp_path / "out.json")
    assert made.method == "least-sum"
    assert made.calibration["paragraphs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sparsity", "0.5"), "--sparsity is for --dynamic"),
        (("--dynamic", "--sparsity", "0.5"), "keeps a delta_max"),
        (("--alpha", "0.2", "--beta", "0.1"), "rates go from alpha to beta"),
        (("--jobs", "2", "--cluster", "tcp://127.0.0.1:9"), "give --jobs or --cluster, not both"),
    ],
)
def test_refuses(capsys, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in run(capsys, tmp_path, *arguments, code=1)
    assert not (tmp_path / "out.json").exists()
