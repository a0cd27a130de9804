"""Plans of static pruning: what is read, and what is refused."""

import json

import pytest

from spqt_ti.convert.plan import PruningPlan
from spqt_ti.errors import AllocationError

GROUPS = [{"first": 0, "layers": 2, "rate": 0.05}, {"first": 2, "layers": 1, "rate": 0.15}]


def plan(**fields: object) -> dict[str, object]:
    return {"spqt_plan": 1, "model": {"sha256": "ab" * 32}, "groups": GROUPS, **fields}


def test_groups_and_rates(tmp_path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan(mode="corrected", alpha=0.05, beta=0.15, calibration={"text_sha256": "0"})))
    found = PruningPlan.load(file)
    assert (found.rates, found.source_sha256) == ((0.05, 0.05, 0.15), "ab" * 32)
    assert found.details["mode"] == "corrected"
    found.check("ab" * 32, 3)
    by_hand = PruningPlan.from_dict({"spqt_plan": 1, "rates": [0, 0.5]})
    assert by_hand.rates == (0.0, 0.5)
    by_hand.check("anything", 2)


def test_another_model() -> None:
    found = PruningPlan.from_dict(plan())
    with pytest.raises(AllocationError, match=r"made for the source with SHA-256 abab.*this one has cdcd"):
        found.check("cd" * 32, 3)
    with pytest.raises(AllocationError, match="rates of 3 layers, the model has 30"):
        found.check("ab" * 32, 30)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"spqt_plan": 2}, "spqt_plan is 2, expected 1"),
        ({"rates": [0.1]}, "either groups or rates"),
        ({"groups": []}, "no list of groups"),
        ({"groups": [GROUPS[1]]}, "begins at layer 2, expected 0"),
        ({"groups": [{"first": 0, "layers": 0, "rate": 0.1}]}, "expected whole numbers"),
        ({"groups": [{"first": 0, "layers": 1, "rate": "x"}]}, "a rate is 'x', expected a number"),
        ({"groups": [7]}, "group 7"),
        ({"groups": [{"first": 0, "layers": 1, "rate": 1.0}]}, "rate of layer 0 is 1, expected"),
        ({"groups": [{"first": 0, "layers": 1, "rate": -0.1}]}, "rate of layer 0 is -0.1"),
        ({"beta": 0.1}, "layer 2 is 0.15, outside the plan's own bounds of 0 to 0.1"),
        ({"model": {"sha256": 3}}, "no object with the sha256"),
        ({"calibration": 3}, "calibration is no object"),
    ],
)
def test_refuses(fields, problem) -> None:
    with pytest.raises(AllocationError, match=problem):
        PruningPlan.from_dict(plan(**fields))


def test_names_the_file(tmp_path) -> None:
    with pytest.raises(AllocationError, match=r"missing\.json: the plan cannot be read"):
        PruningPlan.load(tmp_path / "missing.json")
    (tmp_path / "no.json").write_text("[1")
    with pytest.raises(AllocationError, match=r"no\.json: not a plan"):
        PruningPlan.load(tmp_path / "no.json")
