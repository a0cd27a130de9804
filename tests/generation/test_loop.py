"""The decode loop: when it stops, what it counts, and that it repeats."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tiny_models import random_weights, tiny_config, write_huggingface

from spqt_ti.api import Model
from spqt_ti.convert.quantize import quantize
from spqt_ti.errors import GenerationError
from spqt_ti.generation.loop import Stats, Step, generate_tokens
from spqt_ti.generation.sampling import Sampling
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES
from spqt_ti.sparsity.methods import uniform

PROMPT = "The quick brown fox"
TOKENS = [5, 17, 42, 99, 256, 7]
CONTEXT = 64


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Model:
    folder = tmp_path_factory.mktemp("models")
    config = tiny_config(eos_token_ids=())  # a random model would stop anywhere
    source = write_huggingface(folder / "source", config, random_weights(config))
    container = quantize(source, folder / "quantized", progress=False)
    return Model(container, Llama(container, threads=1, context=CONTEXT, exact=True))


@pytest.fixture
def model(loaded) -> Iterator[Model]:
    """The model, dense before and after."""
    loaded.apply(None)
    yield loaded
    loaded.apply(None)


@pytest.fixture
def llama(model) -> Llama:
    return model.llama


@pytest.fixture(scope="module")
def calibration(loaded) -> uniform.Calibration:
    tokens = np.random.default_rng(3).integers(3, 300, 200).tolist()
    return uniform.calibrate(loaded.llama, loaded.container.fingerprint, "", tokens)


def steps(llama: Llama, prompt=TOKENS, count: int = 8, stop=(), **sampling) -> list[Step]:
    return list(generate_tokens(llama, prompt, count, Sampling(**sampling), set(stop).__contains__))


def tokens_of(llama: Llama, *args, **options) -> list[int]:
    return [step.token for step in steps(llama, *args, **options)]


def stats_of(llama: Llama, count: int = 8) -> Stats:
    stats = steps(llama, count=count)[-1].stats
    assert stats is not None
    return stats


# Ends -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 8])
def test_as_many_as_asked_for(llama, count):
    made = steps(llama, count=count)
    assert len(made) == count
    assert [step.finish_reason for step in made] == [None] * (count - 1) + ["length"]
    assert [step.stats is None for step in made] == [True] * (count - 1) + [False]


@pytest.mark.parametrize("place", [0, 1, 4])
def test_a_stop_token_ends_it_and_is_the_last(llama, place):
    free = tokens_of(llama)
    first = free.index(free[place])  # a small model may repeat itself
    made = steps(llama, stop={free[place]})
    assert [step.token for step in made] == free[: first + 1]
    assert made[-1].finish_reason == "stop"


def test_a_stop_token_at_the_last_place_is_a_stop(llama):
    first = tokens_of(llama)[0]
    assert steps(llama, count=1, stop={first})[-1].finish_reason == "stop"


@pytest.mark.parametrize(("prompt", "expected"), [(CONTEXT, 1), (CONTEXT - 1, 2), (CONTEXT - 10, 11)])
def test_a_full_context_ends_it(llama, prompt, expected):
    """The last token needs no place: nothing follows that would attend to it."""
    made = steps(llama, prompt=[7] * prompt, count=1000)
    assert len(made) == expected
    assert made[-1].finish_reason == "context"
    assert made[-1].stats is not None


def test_the_number_asked_for_comes_before_the_full_context(llama):
    assert steps(llama, prompt=[7] * CONTEXT, count=1)[-1].finish_reason == "length"


# Refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "count", "message"),
    [
        ([], 8, "prompt is empty"),
        ([5, 320], 8, "token id 320 is outside the vocabulary of 320"),
        ([-1, 5], 8, "token id -1 is outside"),
        ([7] * (CONTEXT + 1), 8, "65 tokens do not fit the context of 64"),
        (TOKENS, 0, "max_new_tokens must be 1 or more, not 0"),
        (TOKENS, -3, "max_new_tokens must be 1 or more, not -3"),
    ],
)
def test_requests_that_cannot_be_served(llama, prompt, count, message):
    with pytest.raises(GenerationError, match=message):
        steps(llama, prompt=prompt, count=count)


def test_a_refused_request_does_no_harm(llama):
    before = tokens_of(llama)
    with pytest.raises(GenerationError):
        steps(llama, prompt=[7] * (CONTEXT + 1))
    assert tokens_of(llama) == before


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "prompt is empty"),
        ("fox " * 200, {}, "do not fit the context"),
        (PROMPT, {"temperature": -1}, "temperature"),
        (PROMPT, {"seed": -1}, "seed"),
        (PROMPT, {"top_k": 0}, "top_k"),
        (PROMPT, {"top_p": 0}, "top_p"),
        (PROMPT, {"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_the_same_through_the_model(model, prompt, options, message):
    with pytest.raises(GenerationError, match=message):
        model.generate(prompt, **options)


# Tokens ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_greedy_is_the_chain_of_best_tokens(llama, calibration, sparsity):
    """The loop takes the kernel's own argmax; here NumPy's, of the logits of each decode."""
    llama.thresholds[:] = calibration.policy(sparsity).thresholds
    made = tokens_of(llama, count=20)
    llama.reset()
    expected = [int(llama.prefill(TOKENS)[0].argmax())]
    while len(expected) < 20:
        expected.append(int(llama.decode(expected[-1]).argmax()))
    assert made == expected
    assert len(set(made)) > 3  # a constant would match anything constant


def test_the_first_token_is_dense_whatever_the_policy(llama, calibration):
    """The prompt is not skipped over: only what decoding reads is sparse."""
    dense = tokens_of(llama, count=1)
    llama.thresholds[:] = calibration.policy(0.9).thresholds
    assert tokens_of(llama, count=1) == dense


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 5}, {"temperature": 2.0, "top_k": 9}])
def test_runs_repeat(model, options):
    first = model.generate(PROMPT, max_new_tokens=16, **options)
    second = model.generate(PROMPT, max_new_tokens=16, **options)
    assert (first.text, first.token_ids) == (second.text, second.token_ids)


def test_another_seed_is_another_text(llama):
    texts = {tuple(tokens_of(llama, count=16, temperature=1.5, seed=seed)) for seed in range(4)}
    assert len(texts) == 4


def test_top_k_of_one_is_greedy(llama):
    assert tokens_of(llama, temperature=3.0, top_k=1, seed=4) == tokens_of(llama)


def test_a_run_left_half_way_does_not_reach_the_next(llama):
    before = tokens_of(llama)
    other = generate_tokens(llama, [9, 8, 7], 8, Sampling(), [].__contains__)
    for _ in range(3):
        next(other)
    other.close()
    assert tokens_of(llama) == before


# Text -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 3}, {"chat": True}])
def test_pieces_add_up_to_the_text(model, options):
    pieces = list(model.stream(PROMPT, max_new_tokens=24, **options))
    whole = model.generate(PROMPT, max_new_tokens=24, **options)
    assert "".join(map(str, pieces)) == whole.text
    assert [piece.token for piece in pieces] == whole.token_ids
    assert [piece.finish_reason for piece in pieces] == [None] * 23 + [whole.finish_reason]
    assert whole.text == model.tokenizer.decode(whole.token_ids)
    assert whole.text


def test_the_stop_token_is_not_part_of_the_text(model, monkeypatch):
    free = model.generate(PROMPT, max_new_tokens=8)
    stop = free.token_ids[3]
    monkeypatch.setattr(model.tokenizer, "eos_ids", frozenset({stop}))
    made = model.generate(PROMPT, max_new_tokens=8)
    first = free.token_ids.index(stop)
    assert made.finish_reason == "stop"
    assert made.token_ids == free.token_ids[: first + 1]
    assert made.text == model.tokenizer.decode(free.token_ids[:first])


def test_a_stop_string_ends_the_text_before_it(model):
    free = model.generate(PROMPT, max_new_tokens=12)
    stop = free.text[3:6]
    made = model.generate(PROMPT, max_new_tokens=12, stop=["never said", stop])
    assert made.finish_reason == "stop"
    assert made.text == free.text[: free.text.index(stop)]
    assert len(made.token_ids) <= len(free.token_ids)
    assert "".join(map(str, model.stream(PROMPT, max_new_tokens=12, stop=stop))) == made.text


def test_penalties_reach_the_loop(model):
    """Each token once: every answer with so large a penalty is without repetitions."""
    made = model.generate(PROMPT, max_new_tokens=16, presence_penalty=1e6)
    assert len(set(made.token_ids)) == 16


def test_a_bias_decides_greedy_tokens(llama):
    assert tokens_of(llama, count=3, logit_bias={17: 1e6}) == [17] * 3


def test_a_conversation_is_a_prompt(model):
    messages = [{"role": "user", "content": PROMPT}]
    made = model.generate(messages, max_new_tokens=6)
    assert made.token_ids == model.generate(PROMPT, max_new_tokens=6, chat=True).token_ids
    longer = [*messages, {"role": "assistant", "content": made.text}, {"role": "user", "content": "And then?"}]
    assert model.generate(longer, max_new_tokens=1).stats.prompt_tokens_reused > 0
    for bad in ([], [{"role": "user"}], ["text"], 3, None):
        with pytest.raises(GenerationError):
            model.generate(bad)


# Stats ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 12])
def test_tokens_are_counted(llama, count):
    """The first new token comes from the prompt's logits: one decode less than tokens."""
    stats = stats_of(llama, count)
    assert (stats.prompt_tokens, stats.decode_tokens) == (len(TOKENS), count - 1)
    assert stats.prompt_seconds > 0
    assert (stats.decode_seconds > 0) == (count > 1)
    assert (stats.decode_tokens_per_second > 0) == (count > 1)
    fresh = len(TOKENS) - stats.prompt_tokens_reused
    assert stats.prompt_tokens_per_second == pytest.approx(fresh / stats.prompt_seconds)


@pytest.mark.parametrize("count", [1, 8])
def test_dense_skips_nothing(llama, count):
    assert stats_of(llama, count).inputs_skipped == dict.fromkeys(SITES, 0.0)


def test_dense_reads_every_weight(llama):
    full = np.tile(llama.inputs(), (llama.config.num_hidden_layers, 1))
    assert stats_of(llama).bytes_per_token == llama.traffic.bytes_per_token(full)


def test_one_site_alone_is_counted_at_its_own_name(llama):
    llama.thresholds[:, SITES.index("gate_up")] = 1e30
    assert stats_of(llama).inputs_skipped == {"qkv": 0.0, "o": 0.0, "gate_up": 1.0, "down": 0.0}


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_a_policy_skips_about_its_share(llama, calibration, sparsity):
    llama.thresholds[:] = calibration.policy(sparsity).thresholds
    found = stats_of(llama, 40).inputs_skipped
    assert list(found) == list(SITES)
    assert list(found.values()) == pytest.approx([sparsity] * 4, abs=0.12)


def test_the_share_is_that_of_the_active_inputs(llama, calibration):
    llama.thresholds[:] = calibration.policy(0.5).thresholds
    made = steps(llama, count=6)
    llama.reset()
    llama.prefill(TOKENS)
    active = np.zeros(4)
    for step in made[:-1]:
        llama.decode(step.token)
        active += llama.active.sum(axis=0)
    expected = 1 - active / (llama.inputs() * llama.config.num_hidden_layers * 5)
    assert made[-1].stats.inputs_skipped == pytest.approx(dict(zip(SITES, expected, strict=True)))


def test_fewer_bytes_the_sparser(llama, calibration):
    read = []
    for sparsity in (0, 0.3, 0.6, 0.9):
        llama.thresholds[:] = calibration.policy(sparsity).thresholds
        read.append(stats_of(llama).bytes_per_token)
    assert read == sorted(read, reverse=True)
    head = llama.traffic.bytes_per_token(np.zeros((2, 4)))
    # The head is never skipped; of the rest about nine tenths are.
    assert read[-1] - head < 0.3 * (read[0] - head)
    assert read[-1] > head > 0
