"""Choosing the next token: who may be drawn, how often, and which values are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spqt_ti.errors import GenerationError
from spqt_ti.generation.sampling import Sampling, draw, probabilities

LOGITS = np.random.default_rng(1).normal(0, 3, 50).astype(np.float32)
# Exact in binary, so that "reaches p" can be asked at the very edge; in no order.
EXACT = {3: 0.5, 0: 0.25, 4: 0.125, 1: 0.0625, 2: 0.0625}
EXACT_LOGITS = np.log2([EXACT[i] for i in range(5)]).astype(np.float32)


def exact_probabilities(**options) -> np.ndarray:
    """Of EXACT_LOGITS, at the temperature at which the softmax gives EXACT: powers of two instead of e."""
    return probabilities(EXACT_LOGITS, Sampling(1 / math.log(2), **options))


def softmax(values: np.ndarray) -> np.ndarray:
    e = np.exp(values - values.max())
    return e / e.sum()


def drawn(sampling: Sampling, times: int = 20) -> list[int]:
    generator = np.random.default_rng(sampling.seed)
    return [draw(LOGITS, sampling, generator) for _ in range(times)]


# Greedy ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "best"), [([1, 5, 2], 1), ([5, 1, 5, 5], 0), ([0, 0, 0], 0), ([-9, -3, -3], 1), ([7], 0)]
)
def test_greedy_takes_the_lowest_id_among_the_best(logits, best):
    assert draw(np.array(logits, np.float32), Sampling(), np.random.default_rng(0)) == best


def test_greedy_draws_nothing_from_the_generator():
    generator = np.random.default_rng(0)
    draw(LOGITS, Sampling(), generator)
    assert generator.random() == np.random.default_rng(0).random()


# Probabilities --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 2.5])
def test_without_limits_it_is_the_softmax(temperature):
    expected = softmax(LOGITS.astype(np.float64) / temperature)
    np.testing.assert_allclose(probabilities(LOGITS, Sampling(temperature)), expected, rtol=1e-12)


def test_large_logits_do_not_overflow():
    p = probabilities(np.array([3e38, 0, 3e38, -3e38], np.float32), Sampling(1.0))
    np.testing.assert_array_equal(p, [0.5, 0, 0.5, 0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [1e-5, 1e-300, 1e-308, 5e-324])
def test_a_tiny_temperature_tends_to_the_best(temperature):
    """1e-308 divides a logit of 10 into infinity."""
    expected = np.zeros(50)
    expected[LOGITS.argmax()] = 1
    np.testing.assert_array_equal(probabilities(LOGITS, Sampling(temperature)), expected)


def test_a_huge_temperature_tends_to_uniform():
    np.testing.assert_allclose(probabilities(LOGITS, Sampling(1e12)), np.full(50, 0.02), rtol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 7, 49, 50, 51, 10**9])
def test_top_k_keeps_the_k_likeliest_in_proportion(k):
    p, whole = probabilities(LOGITS, Sampling(1.0, top_k=k)), softmax(LOGITS.astype(np.float64))
    kept = np.argsort(-LOGITS)[:k]
    assert set(np.flatnonzero(p)) == set(kept)
    np.testing.assert_allclose(p[kept], whole[kept] / whole[kept].sum(), rtol=1e-12)


def test_top_k_among_equals_keeps_the_lowest_ids():
    p = probabilities(np.array([1, 2, 2, 2, 0], np.float32), Sampling(1.0, top_k=2))
    np.testing.assert_array_equal(p, [0, 0.5, 0.5, 0, 0])


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (1e-9, {3}),
        (0.49, {3}),
        (0.51, {3, 0}),
        (0.74, {3, 0}),
        (0.76, {3, 0, 4}),
        (0.88, {3, 0, 4, 1}),  # 1 and 2 are as likely: the lower id first
        (0.94, {0, 1, 2, 3, 4}),
        (1.0, {0, 1, 2, 3, 4}),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    p = exact_probabilities(top_p=top_p)
    assert set(np.flatnonzero(p)) == kept
    total = sum(EXACT[i] for i in kept)
    np.testing.assert_allclose(p, [EXACT[i] / total if i in kept else 0 for i in range(5)], rtol=1e-6)


@pytest.mark.parametrize(("top_p", "size"), [(0.25, 1), (0.5, 2), (0.75, 3), (0.7500001, 4)])
def test_a_set_that_reaches_top_p_exactly_is_enough(top_p, size):
    assert np.count_nonzero(probabilities(np.zeros(4, np.float32), Sampling(1.0, top_p=top_p))) == size


def test_top_p_counts_within_top_k():
    """Of the two kept, the first has 2/3: enough for 0.6, though it is only half of all."""
    assert set(np.flatnonzero(exact_probabilities(top_k=2, top_p=0.6))) == {3}
    assert set(np.flatnonzero(exact_probabilities(top_p=0.6))) == {3, 0}


# Drawing --------------------------------------------------------------------------------------------------------------


def test_a_seed_repeats_its_draws():
    assert drawn(Sampling(1.5, seed=7)) == drawn(Sampling(1.5, seed=7))
    assert drawn(Sampling(1.5, seed=7)) != drawn(Sampling(1.5, seed=8))


def test_draws_follow_the_probabilities():
    sampling = Sampling(1 / math.log(2))
    generator = np.random.default_rng(0)
    counts = np.bincount([draw(EXACT_LOGITS, sampling, generator) for _ in range(4000)], minlength=5)
    # Four standard deviations of a share of 4000 draws are at most 0.032.
    np.testing.assert_allclose(counts / 4000, exact_probabilities(), atol=0.032)


def test_top_k_of_one_is_greedy():
    assert set(drawn(Sampling(5.0, top_k=1))) == {int(LOGITS.argmax())}


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", bad) for bad in (-1, -1e-9, math.nan, math.inf, -math.inf)),
        *(("top_k", bad) for bad in (0, -5)),
        *(("top_p", bad) for bad in (0, -0.1, 1.1, math.nan, math.inf)),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_named(field, value):
    with pytest.raises(GenerationError, match=f"{field} must be .* not {value}"):
        Sampling(**{field: value})


@pytest.mark.parametrize(("temperature", "greedy"), [(0, True), (0.0, True), (-0.0, True), (1e-9, False)])
def test_only_temperature_zero_is_greedy(temperature, greedy):
    assert Sampling(temperature).greedy is greedy
