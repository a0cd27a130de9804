"""bench/accuracy/asaf.py: which models it makes, what it compares them with, and its table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_containers

from bench.accuracy import asaf
from spqt_ti.convert.plan import PruningPlan
from spqt_ti.errors import PolicyError
from spqt_ti.evaluation.studies import WindowScores
from spqt_ti.texts import paragraph_hashes

PLAN = {"spqt_plan": 1, "groups": [{"first": 0, "layers": 1, "rate": 0.2}, {"first": 1, "layers": 1, "rate": 0.0}]}
PARAGRAPH = "A paragraph of more than forty characters, which two texts share."


def scores(nll: list[float], kl: list[float]) -> WindowScores:
    return WindowScores(0.0, 80e6, np.array(nll), np.array(kl), np.ones(len(kl)))


def arguments(tmp_path: Path, calibration: str = "Another text.", planned_on: str = "") -> argparse.Namespace:
    said = {"paragraphs": paragraph_hashes(planned_on)}
    (tmp_path / "plan.json").write_text(json.dumps({**PLAN, "calibration": said}))
    (tmp_path / "calibration.txt").write_text(calibration)
    (tmp_path / "text.txt").write_text(PARAGRAPH)
    return argparse.Namespace(
        plan=[tmp_path / "plan.json"], rate=[0.1], mode=None, gptq=["plan"], rounds=0,
        model=str(tiny_containers.folder() / "gqa-zigzag-f32-source"), text=[str(tmp_path / "text.txt")],
        calibration=str(tmp_path / "calibration.txt"), folder=tmp_path / "made",
    )  # fmt: skip


def test_cases(tmp_path: Path) -> None:
    """Every mode to the nearest; GPTQ in the first mode."""
    found = [case.folder for case in asaf.cases_of(arguments(tmp_path), 2)]
    assert found == [
        "unpruned-rtn", "plan-compensated-rtn", "plan-channels-rtn", "uniform-0.1-compensated-rtn",
        "uniform-0.1-channels-rtn", "unpruned-gptq", "plan-compensated-gptq",
    ]  # fmt: skip


def test_quality_is_paired() -> None:
    found = asaf.Quality.of(scores([4.1, 3.1], [0.2, 0.4]), scores([4.0, 3.0], [0.1, 0.1]))
    assert found.rise == pytest.approx(np.expm1(0.1))
    assert found.rise_se == pytest.approx(0, abs=1e-12)
    assert (found.kl, found.kl_se) == (pytest.approx(0.3), pytest.approx(0.1))


def test_against_uniform() -> None:
    """The rate that removes nearly as much, of the same mode and method."""
    groups, one = PruningPlan((0.2, 0.0)), PruningPlan((0.1, 0.1))
    cases = [
        asaf.Case("unpruned", None, "", "rtn"), asaf.Case("plan", groups, "channels", "rtn"),
        asaf.Case("a", one, "channels", "rtn"), asaf.Case("b", one, "channels", "rtn"),
        asaf.Case("c", one, "compensated", "rtn"),
    ]  # fmt: skip
    found = [scores([4.0, 4.0], kl) for kl in ([0.1, 0.1], [0.2, 0.3], [0.3, 0.6], [0.9, 0.9], [0.1, 0.1])]
    (line,) = asaf.against_uniform(cases, [0.0, 0.1, 0.12, 0.3, 0.1], found)
    assert line == "plan-channels-rtn (10.00% of the FFN) over a-channels-rtn (12.00%): KL -0.2000 ± 0.1000"


def test_table() -> None:
    quality = asaf.Quality(60.0, 0.01, 0.002, 0.15, 0.004)
    rows = [
        asaf.Row("plan", 0.06, 88_000_000, 85e6, (quality,), 2000.0, 400.0),
        asaf.Row("llama.cpp F16", 0.0, 270_000_000, None, (), 1000.0, 90.0),
    ]
    found = asaf.table(rows, ["evaluation"], 512)
    assert {len(row) for row in found.rows} == {len(found.titles)}
    assert found.rows[0] == [
        "plan", "6.00%", "88.0", "85.0", "60.00", "+1.00% ± 0.20%", "0.1500 ± 0.0040", "2000", "400",
    ]  # fmt: skip
    assert found.rows[1] == ["llama.cpp F16", "", "270.0", "", "", "", "", "1000", "90"]


@pytest.mark.parametrize("texts", [{"calibration": f"{PARAGRAPH}\n\nMore."}, {"planned_on": PARAGRAPH}])
def test_texts_that_overlap_are_refused_before_any_work(texts: dict[str, str], tmp_path: Path, monkeypatch) -> None:
    tiny_containers.container("gqa")
    monkeypatch.setattr(asaf, "made", None)
    with pytest.raises(PolicyError, match="shares 1 paragraphs"):
        asaf.measure(arguments(tmp_path, **texts))
