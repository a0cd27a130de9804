"""Cuts against the same search one step at a time, with a heap."""

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spqt_ti.sparsity.predictors.cuts import SILENCED, Cuts


def case(seed=0, tokens=300, neurons=40, noise=1.0):
    """Predictions that are true values with noise."""
    rng = np.random.default_rng(seed)
    true = rng.standard_normal((tokens, neurons)) - rng.uniform(0.5, 2, neurons)
    guess = (true + noise * rng.standard_normal(true.shape)).astype(np.float32)
    return guess, np.maximum(true, 0), true > 0


def by_heap(cuts: Cuts, target: float) -> np.ndarray:
    """The paper's loop."""
    at = cuts.free()
    last = len(cuts.counts) - 1
    below, silenced = int(cuts.counts[at].sum()), 0

    def step(i):
        return (cuts.penalties[i, at[i] + 1] - cuts.penalties[i, at[i]], i)

    heap = [step(i) for i in range(len(at)) if at[i] < last]
    heapq.heapify(heap)
    while heap and below < target * len(at) * cuts.tokens:
        _, i = heapq.heappop(heap)
        silenced += at[i] + 1 == last
        if silenced > int(SILENCED * len(at)):
            break
        below += int(cuts.counts[at[i] + 1] - cuts.counts[at[i]])
        at[i] += 1
        if at[i] < last:
            heapq.heappush(heap, step(i))
    return at


@given(
    seed=st.integers(0, 999), tokens=st.integers(1, 700), neurons=st.integers(1, 130), target=st.floats(0, 1),
    noise=st.sampled_from([0.0, 0.3, 3.0]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_same_cuts_as_a_heap(seed, tokens, neurons, target, noise):
    cuts = Cuts.measure(*case(seed, tokens, neurons, noise))
    np.testing.assert_array_equal(cuts.choose(target), by_heap(cuts, target))


@pytest.mark.parametrize("target", [0.0, 0.3, 0.6, 0.9])
def test_figures_are_those_of_the_mask(target):
    guess, importance, on = case()
    cuts = Cuts.measure(guess, importance, on)
    at = cuts.choose(target)
    mask = guess + cuts.bias(at) > 0
    figures = cuts.figures(at)
    assert figures["predicted_density"] == pytest.approx(mask.mean())
    assert figures["true_density"] == pytest.approx(on.mean())
    assert figures["recall"] == pytest.approx(mask[on].mean())
    assert figures["precision"] == pytest.approx(on[mask].mean())


def test_predicted_sparsity_is_the_target_and_at_most_a_step_more():
    """Less where silenced neurons end the search."""
    cuts = Cuts.measure(*case(noise=2.0, neurons=200))
    step = np.diff(cuts.counts).max() / (200 * cuts.tokens)
    free = cuts.counts[cuts.free()].sum() / (200 * cuts.tokens)
    for target in (0.1, 0.2, 0.4, 0.6):
        sparsity = 1 - cuts.figures(cuts.choose(target))["predicted_density"]
        assert sparsity <= max(target, free) + step + 1e-9
        assert sparsity >= max(target, free) - 1e-9 or target > 0.3


def test_recall_falls_as_sparsity_rises():
    cuts = Cuts.measure(*case(noise=2.0))
    recalls = [cuts.figures(cuts.choose(target))["recall"] for target in np.linspace(0, 0.9, 10)]
    assert recalls == sorted(recalls, reverse=True)
    assert recalls[0] == 1


def test_few_neurons_are_silenced():
    """However high the target: but those that never were on are, at no cost."""
    guess, importance, on = case(neurons=300)
    importance[:, :7], on[:, :7] = 0, False
    cuts = Cuts.measure(guess, importance, on)
    off = ~(guess + cuts.bias(cuts.choose(1.0)) > 0).any(axis=0)
    assert off[:7].all()
    assert off[7:].sum() <= SILENCED * 300


def test_important_neurons_stay_on():
    """At the same sparsity, of two neurons alike the cheap one is off more often."""
    guess, importance, on = case(noise=3.0)
    guess[:, 1], on[:, 1], importance[:, 1] = guess[:, 0], on[:, 0], 10 * importance[:, 0]
    at = Cuts.measure(guess, importance, on).choose(0.6)
    assert at[1] < at[0]


def test_one_bias_for_all():
    guess, importance, on = case()
    cuts = Cuts.measure(guess, importance, on)
    at, bias = cuts.choose_one(0.5)
    assert (guess + bias > 0).mean() == pytest.approx(0.5, abs=0.01)
    assert cuts.figures(at)["predicted_density"] == pytest.approx(0.5, abs=0.01)
    assert cuts.figures(cuts.choose_at(0.0))["predicted_density"] == pytest.approx((guess > 0).mean(), abs=0.01)


def test_parts_make_the_whole():
    guess, importance, on = case()
    whole = Cuts.measure(guess, importance, on)
    parts = [Cuts.measure(guess[:, s], importance[:, s], on[:, s]) for s in (slice(0, 13), slice(13, 40))]
    joined = Cuts.joined(parts)
    for name in ("counts", "highest", "penalties", "lost"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
