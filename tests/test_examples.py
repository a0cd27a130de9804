"""Every file in examples/ runs as it is: on a tiny model each time, on SmolLM2 where a claim is made of it."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import tiny_containers

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(example: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [example, *arguments])
    runpy.run_path(str(EXAMPLES / example), run_name="__main__")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny quantised model."""
    return str(tiny_containers.container("gqa").path)


def test_every_example_is_run_here() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text()))


def test_stream(model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("stream.py", monkeypatch, model, "The fox")
    out = capsys.readouterr().out
    assert out.startswith("The fox")
    assert re.search(r"down +\d+% of the inputs skipped", out)


def test_logits_and_policy(model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("logits_and_policy.py", monkeypatch, model)
    *uniform, only_down = (float(kl) for kl in re.findall(r"KL (\S+)", capsys.readouterr().out))
    assert uniform == sorted(uniform)
    assert 0 < only_down < uniform[-1]


def test_own_method(model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("own_method.py", monkeypatch, model)
    assert re.search(r"^uniform: .*\nramp: .* MB per token$", capsys.readouterr().out, re.MULTILINE)


def test_gemv(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("gemv.py", monkeypatch, "300", "200")
    errors = [float(error) for error in re.findall(r"error (\S+)", capsys.readouterr().out)]
    assert len(errors) == 3
    assert max(errors) < 1e-4
    assert errors[2] < 1e-6
