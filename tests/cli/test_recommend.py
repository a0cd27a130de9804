"""spqt recommend: a curve, a model, and how to get what is recommended."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tiny_containers

from spqt_ti.cli import main
from spqt_ti.evaluation.curve import Curve, Point

POINTS = (
    Point("q4_k", "rtn", "", 0.0, 0.0, 90e6, 0.15, 0.01, 60.0, 0.8),
    Point("q4_k", "gptq", "teal", 0.5, 0.49, 60e6, 0.5, 0.01, 90.0, 0.6),
)


def run(capsys, curve: Path, *more: str, code: int = 0) -> str:
    arguments = ["recommend", str(tiny_containers.container("gqa").path), "--curve", str(curve), *more]
    assert main.main(arguments) == code
    output = capsys.readouterr()
    return output.err if code else output.out


@pytest.fixture
def curve(tmp_path: Path) -> Path:
    made = Curve("m", tiny_containers.container("gqa").source.sha256, POINTS, {})
    path = tmp_path / "curve.json"
    path.write_text(made.to_json())
    return path


def test_says_how(capsys, curve: Path) -> None:
    said = run(capsys, curve, "--speed", "1.5x")
    assert "q4_k gptq, teal 50%: KL 0.5000" in said
    assert "1.50 times as fast as q4_k rtn by the bytes it reads" in said
    for command in ("--scheme q4_k --method gptq", "--method teal --sparsity 0.5", "--policy policy.json"):
        assert command in said
    assert json.loads(run(capsys, curve, "--kl", "0.2", "--json"))["name"] == "q4_k rtn"


def test_refuses(capsys, curve: Path) -> None:
    assert "nothing on the curve is 4 times as fast" in run(capsys, curve, "--speed", "4", code=1)
    made = dataclasses.replace(Curve.load(curve), source_sha256="b" * 64)
    curve.write_text(made.to_json())
    assert "another model" in run(capsys, curve, "--kl", "1", code=1)
    assert main.main(["recommend", str(tiny_containers.container("gqa").path), "--kl", "1"]) == 1
    assert "no curve of this model" in capsys.readouterr().err
