"""Static pruning: masked channels are removed ones, and a plan says what was measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_containers

from spqt_ti.allocation.allocators import KeepWithin, allocate
from spqt_ti.allocation.grouped import GroupSettings
from spqt_ti.allocation.problem import BudgetProblem
from spqt_ti.convert.plan import PruningPlan
from spqt_ti.errors import AllocationError
from spqt_ti.evaluation.float_model import FloatModel
from spqt_ti.model.sites import Site
from spqt_ti.parallel.executors import InProcess
from spqt_ti.parallel.study import ModelReference, Request
from spqt_ti.sparsity.allocate import static, tables
from spqt_ti.sparsity.allocate.static import StaticSettings
from spqt_ti.sparsity.allocate.studies import PrunedChannels
from spqt_ti.sparsity.search.divergence import divergence, log_softmax

RNG = np.random.default_rng(5)
WINDOWS, CALIBRATION = RNG.integers(0, 300, (2, 30)).tolist(), RNG.integers(0, 300, (2, 30)).tolist()
SETTINGS = StaticSettings(alpha=0.2, beta=0.6, rate_step=0.2, delta_max=0.5, windows=2)  # of 160 channels


@pytest.fixture(scope="module")
def study() -> PrunedChannels:
    settings = {"windows": WINDOWS, "calibration": CALIBRATION, "threads": 1}
    return PrunedChannels(tiny_containers.container("gqa"), settings)


def activations(model: FloatModel) -> list[np.ndarray]:
    """Inputs of down in each layer over the calibration windows, [tokens, channels]."""
    seen: dict[int, list[np.ndarray]] = {}
    for window in CALIBRATION:

        def observe(layer: int, site: str, inputs: np.ndarray) -> np.ndarray:
            if site == "down":
                seen.setdefault(layer, []).append(inputs[0])
            return inputs

        model.logits(window, mask=observe)
    return [np.concatenate(found) for _, found in sorted(seen.items())]


def without_channels(model: FloatModel, layer: int, x: np.ndarray, removed: int) -> None:
    """Really remove the channels of a layer that matter least, by their activations x in the dense model."""
    old = model.layers[layer]
    gate_up, down = old.matrices["gate_up"], old.matrices["down"]
    order = np.argsort(np.linalg.norm(x, axis=0) * np.linalg.norm(down, axis=0))
    kept = np.sort(order[removed:])
    rows = np.concatenate([kept, kept + down.shape[1]])
    smaller = {**old.matrices, "gate_up": gate_up[rows], "down": down[:, kept]}
    model.layers[layer] = dataclasses.replace(old, matrices=smaller)


@pytest.mark.parametrize(("item", "removed"), [([[1, 1, 0.4]], {1: 64}), ([[0, 1, 0.2], [1, 1, 0.45]], {0: 32, 1: 64})])
def test_masked_channels_are_removed_ones(study: PrunedChannels, item: list, removed: dict[int, int]) -> None:
    """As in a model in NumPy whose matrices are smaller."""
    weights = dict(tiny_containers.container("gqa").weights())
    dense = FloatModel(tiny_containers.container("gqa").config, weights)
    smaller = FloatModel(tiny_containers.container("gqa").config, weights)
    for layer, count in removed.items():
        without_channels(smaller, layer, activations(dense)[layer], count)
    kl, rise = [], []
    for window in WINDOWS:
        p, q = (log_softmax(model.logits(window, len(window) // 4)) for model in (dense, smaller))
        wanted = np.asarray(window)[len(window) // 4 + 1 :]
        kl.append(divergence(p, q).mean())
        rise.append(np.mean((p - q)[np.arange(len(wanted)), wanted]))
    np.testing.assert_allclose(study(item), [np.mean(kl), np.mean(rise)], rtol=0.01, atol=1e-4)
    assert np.mean(kl) > 0.001


def test_a_result_depends_on_its_item_alone(study: PrunedChannels) -> None:
    first = study([[0, 2, 0.25]])
    study([[1, 1, 0.6]])
    assert study([[0, 2, 0.25]]).tobytes() == first.tobytes()
    assert study([[0, 2, 0.0]])[0] < 1e-6


@pytest.mark.parametrize("exact", [False, True])
def test_plan(exact: bool, tmp_path: Path, monkeypatch) -> None:
    """Within the limit and the bounds; the second time from what is kept; exactly one range is two layers."""
    monkeypatch.setattr(static, "WINDOW", 30)
    container, tokens = tiny_containers.container("gqa"), RNG.integers(0, 300, 400).tolist()
    settings = dataclasses.replace(SETTINGS, exact=exact)
    made = static.plan(container, "text", tokens, settings, InProcess(), tmp_path)
    assert made.allocation.degradation <= settings.delta_max
    assert {g.rate for g in made.allocation.groups} <= set(settings.rates(160))
    (kept,) = tmp_path.iterdir()
    assert len(json.loads(kept.read_text())["results"]) == 3 * (3 if exact else 2)
    fields = json.loads(made.to_json())
    assert fields["spqt_plan"] == 1
    assert fields["model"] == {"sha256": container.source.sha256}
    assert [(g["first"], g["layers"], g["rate"]) for g in fields["groups"]] == [
        (g.first, g.count, g.rate) for g in made.allocation.groups
    ]

    class Nothing:
        def run(self, request, items):
            assert len(items) == 1  # the check on unseen windows
            yield from InProcess().run(request, items)

    assert static.plan(container, "text", tokens, settings, Nothing(), tmp_path).to_json() == made.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "best"}, "unknown mode"),
        ({"measure": "loss"}, "unknown measure"),
        ({"alpha": 0.3, "beta": 0.2}, "from alpha to beta"),
        ({"beta": 1.0}, "from alpha to beta"),
        ({"delta_max": 0.0}, "above 0"),
        ({"rate_step": 0.0}, "rate step above 0"),
        ({"price": -1.0}, "price of 0 or more"),
    ],
)
def test_settings_that_make_no_sense(change: dict, message: str) -> None:
    with pytest.raises(AllocationError, match=message):
        StaticSettings(**change)


def test_rates_are_whole_numbers_of_32_channels() -> None:
    """Within the bounds; those of a larger bound contain those of a smaller one."""
    found = StaticSettings().rates(1536)
    assert np.array(found) * 1536 / 32 == pytest.approx(range(1, 8))
    assert StaticSettings(alpha=0.0).rates(1536) == [0.0, *found]
    assert StaticSettings(beta=0.2).rates(1536)[:7] == found
    with pytest.raises(AllocationError, match=r"32 channels of 160: allow rates up to 0\.2"):
        StaticSettings().rates(160)


def test_a_short_text() -> None:
    with pytest.raises(AllocationError, match="expected 256 or more"):
        static.plan(tiny_containers.container("gqa"), "text", [1] * 255, SETTINGS, InProcess())


def test_the_check_is_on_other_windows(monkeypatch) -> None:
    """Those that the plan is chosen on are left out, and a text that has no others is refused before any work."""
    container, asked = tiny_containers.container("gqa"), []

    class Recorded:
        def run(self, request, items):
            asked.append(request.settings["windows"])
            yield from ((index, np.array([0.01, 0.01])) for index in range(len(items)))

    monkeypatch.setattr(static, "WINDOW", 30)
    tokens = list(range(300))
    static.plan(container, "text", tokens, SETTINGS, Recorded())
    chosen_on, unseen = ({token for window in windows for token in window} for windows in asked)
    assert chosen_on
    assert unseen
    assert not chosen_on & unseen
    monkeypatch.setattr(static, "WINDOW", 200)
    asked.clear()
    with pytest.raises(AllocationError, match="300 tokens leave no window to check the plan on"):
        static.plan(container, "text", tokens, SETTINGS, Recorded())
    assert not asked


@pytest.mark.parametrize("measure", ["kl", "perplexity"])
def test_a_plan_keeps_its_limit_end_to_end(study: PrunedChannels, measure: str) -> None:
    """The model with the whole plan, on the windows that it is measured on: within (1 + delta_max) of the whole one.
    Ranges are measured, so a plan of one group says exactly what it costs.
    """
    settings = dataclasses.replace(SETTINGS, measure=measure, exact=True, price=1.0, delta_max=0.06)
    container, rates = tiny_containers.container("gqa"), SETTINGS.rates(160)
    request = Request(static.PRUNED_CHANNELS, ModelReference.of(container), {
        "windows": WINDOWS, "calibration": CALIBRATION, "threads": 1,
    })  # fmt: skip
    table = tables.degradations(tables.measure(InProcess(), request, 2, rates, True, None), measure)
    limit = KeepWithin(settings.delta_max, GroupSettings(price=settings.price))
    found = allocate("asaf", BudgetProblem(np.array(rates), static.ffn_weights(container), table), limit)
    assert len(found.groups) == 1
    cost = np.expm1(study([[g.first, g.count, g.rate] for g in found.groups]))[tables.MEASURES.index(measure)]
    assert cost <= settings.delta_max
    assert max(cost, 0) == pytest.approx(found.degradation, rel=1e-6, abs=1e-9)


def test_channels_of_ffn_weights() -> None:
    container = tiny_containers.container("gqa")
    stored = sum(container.matrix(1, s).rows * container.matrix(1, s).cols for s in (Site.GATE_UP, Site.DOWN))
    assert static.ffn_weights(container).tolist() == [stored] * 2


def test_a_plan_is_what_quantize_reads(tmp_path: Path, monkeypatch) -> None:
    """Rates layer by layer, for this source and no other."""
    monkeypatch.setattr(static, "WINDOW", 30)
    container, tokens = tiny_containers.container("gqa"), RNG.integers(0, 300, 400).tolist()
    made = static.plan(container, "text", tokens, SETTINGS, InProcess())
    made.save(tmp_path / "plan.json")
    read = PruningPlan.load(tmp_path / "plan.json")
    read.check(container.source.sha256, 2)
    assert read.rates == made.allocation.rates
    with pytest.raises(AllocationError, match="sensitivities do not carry over"):
        read.check("b" * 64, 2)
