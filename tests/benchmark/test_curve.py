"""bench/accuracy/curve.py: its table, its plot, and dense widths against sparse ones at equal bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.accuracy import curve
from spqt_ti.evaluation.curve import Curve, Point


def point(scheme: str, level: float, megabytes: float, kl: float, speed: float | None) -> Point:
    method = "teal" if level else ""
    return Point(scheme, "rtn", method, level, level, megabytes * 1e6, kl, 0.01, 60.0, 0.8, speed)


def example(speed: float | None) -> Curve:
    points = (
        point("q3_k", 0, 75, 0.6, speed), point("q4_k", 0, 90, 0.15, speed), point("q4_k", 0.5, 60, 0.5, speed),
        point("q6_k", 0, 120, 0.01, speed),
    )  # fmt: skip
    return Curve("m", "a" * 64, points, {})


def test_answers() -> None:
    """Between the dense and the sparse point the logarithm of the KL is linear: 0.27 at 75 MB, and q6_k has no line."""
    (found,) = curve.answers(example(None))
    assert found == ("at 75.0 MB per token: q3_k rtn dense has KL 0.6000, q4_k rtn with teal 0.2739: sparse is better")


@pytest.mark.parametrize("speed", [None, 100.0])
def test_table_and_plot(speed: float | None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table = curve.table(example(speed))
    assert [row[0] for row in table.rows] == ["q4_k rtn, teal 50% *", "q3_k rtn", "q4_k rtn *", "q6_k rtn *"]
    curve.draw(example(speed), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
