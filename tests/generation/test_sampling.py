"""Choosing the next token: who may be drawn, how often, and which values are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spqt_ti.errors import GenerationError
from spqt_ti.generation.sampling import Sampler, Sampling, changed, draw, probabilities

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


@pytest.mark.parametrize("count", [1, 256, 1000])
def test_all_tokens_are_drawn_by_their_probabilities_added_up(count):
    """In parts of the vocabulary, with tokens that have no probability at the end."""
    logits = np.random.default_rng(count).normal(0, 3, count).astype(np.float32)
    logits[-count // 3 :] = -np.inf if count > 1 else 0
    sampling, generators = Sampling(temperature=0.8), [np.random.default_rng(5) for _ in range(2)]
    up_to = np.cumsum(softmax(logits.astype(np.float64) / 0.8))
    for _ in range(200):
        expected = np.searchsorted(up_to, generators[0].random(), side="right")
        assert draw(logits, sampling, generators[1]) == expected


def test_the_last_token_that_can_be_drawn_ends_the_draw():
    class Largest(np.random.Generator):
        def random(self, *_args, **_options):
            return np.nextafter(1, 0)

    logits = np.where(np.arange(600) < 100, np.float32(0), -np.float32(np.inf))
    assert draw(logits, Sampling(temperature=1.0), Largest(np.random.PCG64())) == 99


def test_a_token_without_probability_is_never_drawn():
    """Not even by the smallest number that a generator gives, which is 0."""

    class Smallest(np.random.Generator):
        def random(self, *_args, **_options):
            return 0.0

    logits = np.where(np.arange(600) < 300, -np.float32(np.inf), np.float32(0))
    assert draw(logits, Sampling(temperature=1.0), Smallest(np.random.PCG64())) == 300


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
    # Sorting a few entries keeps the order of equals by chance.
    logits = np.tile(np.array([0, 1], np.float32), 500)
    assert np.flatnonzero(probabilities(logits, Sampling(1.0, top_k=20))).tolist() == list(range(1, 40, 2))


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


@pytest.mark.parametrize(
    "fields",
    [
        {"min_p": 0.1}, {"min_p": 1.0}, {"min_p": 0.05, "temperature": 1.7}, {"typical_p": 0.2}, {"typical_p": 0.9},
        {"typical_p": 0.97}, {"top_k": 9, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.8, "temperature": 0.6},
    ],
    ids=str,
)  # fmt: skip
def test_as_transformers_has_it(fields):
    """Same kept tokens, and probabilities but for the rounding of f32."""
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    warpers = {
        "temperature": processors.TemperatureLogitsWarper, "top_k": processors.TopKLogitsWarper,
        "top_p": processors.TopPLogitsWarper, "min_p": processors.MinPLogitsWarper,
        "typical_p": processors.TypicalLogitsWarper,
    }  # fmt: skip
    for seed in range(20):
        logits = np.random.default_rng(seed).normal(0, 3, 50).astype(np.float32)
        scores = torch.tensor(logits)[None]
        for name in warpers:
            if name in fields:
                scores = warpers[name](fields[name])(None, scores)
        expected = torch.softmax(scores, -1)[0].numpy()
        p = probabilities(logits, Sampling(**{"temperature": 1.0, **fields}))
        np.testing.assert_array_equal(p > 0, expected > 0)
        np.testing.assert_allclose(p, expected, rtol=2e-5)


# Penalties ------------------------------------------------------------------------------------------------------------


def test_repetition_penalty_as_transformers_has_it():
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    tokens = [3, 7, 7, 20]
    expected = processors.RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([tokens]), torch.tensor(LOGITS)[None])
    seen = np.isin(np.arange(50), tokens)
    found = changed(LOGITS, Sampling(repetition_penalty=1.3), seen, np.zeros(50, int))
    np.testing.assert_allclose(found, expected[0].numpy(), rtol=1e-6)


def test_frequency_and_presence_penalties_are_of_the_answer():
    """OpenAI's formula: logit - count * frequency - (count > 0) * presence. The prompt's tokens do not count."""
    made = np.zeros(50, int)
    made[[4, 9]] = 1, 3
    found = changed(LOGITS, Sampling(frequency_penalty=0.5, presence_penalty=0.25), np.ones(50, bool), made)
    expected = LOGITS.astype(np.float64)
    expected[[4, 9]] -= 0.75, 1.75
    np.testing.assert_array_equal(found, expected)


def test_a_sampler_counts_what_it_draws():
    sampler = Sampler(Sampling(presence_penalty=1.5), [1], 3)
    assert [sampler.draw(np.array([1.0, 3.0, 2.0], np.float32)) for _ in range(4)] == [1, 2, 1, 1]


def test_a_sampler_counts_how_often_it_draws():
    """0.6 is taken off for each time: after two of them 3.0 is below 2.0."""
    sampler = Sampler(Sampling(frequency_penalty=0.6), [1], 3)
    assert [sampler.draw(np.array([0.0, 3.0, 2.0], np.float32)) for _ in range(4)] == [1, 1, 2, 1]
    sampler = Sampler(Sampling(frequency_penalty=0.6), [], 3)
    sampler.note([1, 1])
    assert sampler.draw(np.array([0.0, 3.0, 2.0], np.float32)) == 2


def test_a_sampler_penalises_the_prompt_for_repetition():
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    assert Sampler(Sampling(repetition_penalty=2.0), [0], 3).draw(logits) == 1
    assert Sampler(Sampling(repetition_penalty=2.0), [1], 3).draw(logits) == 2


def test_logit_bias():
    sampling = Sampling(logit_bias={0: 100.0, 2: -100.0})
    assert Sampler(sampling, [], 3).draw(np.array([1.0, 3.0, 2.0], np.float32)) == 0
    with pytest.raises(GenerationError, match="logit_bias has token 2, outside the vocabulary of 2"):
        Sampler(sampling, [], 2)


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
        *((name, bad) for name in ("top_p", "min_p", "typical_p") for bad in (0, -0.1, 1.1, math.nan, math.inf)),
        *(("repetition_penalty", bad) for bad in (0, -1, math.inf)),
        *((name, math.nan) for name in ("frequency_penalty", "presence_penalty")),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_named(field, value):
    with pytest.raises(GenerationError, match=f"{field} must be .* not {value}"):
        Sampling(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, bad) for name in ("frequency_penalty", "presence_penalty") for bad in ("1", None)),
        *(("logit_bias", bad) for bad in ([1], {-1: 1.0}, {"a": 1.0}, {1: math.nan}, None)),
    ],
)
def test_values_of_another_type_are_named(field, value):
    with pytest.raises(GenerationError, match=field):
        Sampling(**{field: value})


@pytest.mark.parametrize(("temperature", "greedy"), [(0, True), (0.0, True), (-0.0, True), (1e-9, False)])
def test_only_temperature_zero_is_greedy(temperature, greedy):
    assert Sampling(temperature).greedy is greedy
