"""Curves: the file, the frontier, and what is recommended of it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from spqt_ti.errors import PolicyError
from spqt_ti.evaluation.curve import Curve, Point, frontier, kl_at_bytes, recommend


def point(scheme: str, megabytes: float, kl: float, level: float = 0.0, **more: object) -> Point:
    fields = {"quantizer": "rtn", "sparse_method": "teal" if level else "", "level": level, "realised_sparsity": level}
    fields |= {"kl_se": kl / 50, "perplexity": 60.0, "same_top1": 0.8, "tokens_per_second": None} | more
    return Point(scheme=scheme, bytes_per_token=megabytes * 1e6, kl=kl, **fields)


CURVE = Curve(
    "m",
    "a" * 64,
    (point("q8_0", 140, 0.001), point("q4_k", 90, 0.15), point("q4_k", 60, 0.5, 0.5), point("q3_k", 75, 0.6)),
    {"windows": 8},
)


def test_round_trip() -> None:
    assert Curve.from_json(CURVE.to_json()) == CURVE


@pytest.mark.parametrize(
    ("speed", "kl", "name"),
    [(1.0, None, "q4_k rtn"), (1.2, None, "q4_k rtn, teal 50%"), (0.5, None, "q8_0 rtn"), (None, 0.2, "q4_k rtn"),
     (None, 0.01, "q8_0 rtn"), (None, 9.0, "q4_k rtn, teal 50%")],
)  # fmt: skip
def test_recommends(speed: float | None, kl: float | None, name: str) -> None:
    """The least KL at a speed, the highest speed at a KL."""
    assert recommend(CURVE, speed, kl).name == name


def test_measured_speeds_count_where_there_are_some() -> None:
    speeds = (100.0, 200.0, 210.0, 320.0)
    points = [dataclasses.replace(p, tokens_per_second=s) for p, s in zip(CURVE.points, speeds, strict=True)]
    timed = dataclasses.replace(CURVE, points=tuple(points))
    assert recommend(timed, 1.5).name == "q3_k rtn"
    assert timed.speed(timed.points[2]) == (1.05, True)
    assert CURVE.speed(CURVE.points[2]) == (1.5, False)


@pytest.mark.parametrize(
    ("speed", "kl", "message"),
    [
        (3.0, None, r"the fastest is q4_k rtn, teal 50%, 1\.50 times"),
        (None, 1e-6, r"the nearest is q8_0 rtn with 0\.0010"),
        (None, None, "not both"),
        (1.0, 1.0, "not both"),
    ],
)
def test_refuses(speed: float | None, kl: float | None, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        recommend(CURVE, speed, kl)


@pytest.mark.parametrize(
    "damage",
    [
        {"kl": "x"},
        {"kl": None},
        {"bytes_per_token": 0},
        {"scheme": 3},
        {"unknown": 1},
        {"level": True},
        {"scheme": "q4_k; ls"},
        {"quantizer": "\x1b[2J"},
    ],
)
def test_damaged_points(damage: dict) -> None:
    fields = json.loads(CURVE.to_json())
    fields["points"][0] |= damage
    with pytest.raises(PolicyError, match="not a curve"):
        Curve.from_json(json.dumps(fields))


def test_frontier_and_lines() -> None:
    assert [p.name for p in frontier(CURVE.points)] == ["q4_k rtn, teal 50%", "q4_k rtn", "q8_0 rtn"]
    line = CURVE.points[1:3]
    assert kl_at_bytes(line, 75e6) == pytest.approx((0.15 * 0.5) ** 0.5)
    assert kl_at_bytes(line, 50e6) is None


def test_the_curves_of_the_package_can_be_read() -> None:
    assert Curve.known("0" * 64) is None


def test_a_curve_without_points() -> None:
    fields = json.loads(CURVE.to_json()) | {"points": []}
    with pytest.raises(PolicyError, match="no points"):
        Curve.from_json(json.dumps(fields))
