"""DRY: penalties against the definition tried out at every place, and against llama.cpp's own sampler."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import plain_generation
import pytest
import tiny_containers
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import random_weights, tiny_config, write_gguf

from spqt_ti.api import Model
from spqt_ti.errors import GenerationError
from spqt_ti.generation.dry import Dry, prefix_matches
from spqt_ti.generation.loop import generate_tokens
from spqt_ti.generation.sampling import Sampling

WORDS = [b"a", b"b", b"ab", b"\n", b"x\n", b"", b"-", b"->", b">"]  # the text of ids 0 to 8
BREAKERS = st.lists(st.sampled_from(["\n", "->", "b-", "ab"]), unique=True)
TOKENS = st.lists(st.integers(0, len(WORDS) - 1), max_size=40) | st.lists(st.integers(0, 2), max_size=40)


def spelled(token: int) -> bytes:
    return WORDS[token]


def penalties(tokens: list[int], split: int, context: int, sampling: Sampling) -> np.ndarray:
    """f64 [vocab], where the first `split` tokens are the prompt."""
    dry = Dry(sampling, spelled, context, tokens[:split])
    for token in tokens[split:]:
        dry.note(token)
    return -dry.penalised(np.zeros(len(WORDS)))


@given(
    TOKENS, st.integers(0, 40), st.integers(1, 50), st.sampled_from([-1, 1, 2, 5, 30, 1000]), st.integers(0, 4),
    BREAKERS, st.sampled_from([1.0, 1.75, 3.0]),
)  # fmt: skip
def test_penalties_are_those_of_the_definition(tokens, split, context, last_n, allowed, breakers, base):
    sampling = Sampling(
        dry_multiplier=0.8, dry_base=base, dry_allowed_length=allowed, dry_penalty_last_n=last_n,
        dry_sequence_breakers=breakers,
    )  # fmt: skip
    window = context if last_n < 0 else min(last_n, context)
    raw = [breaker.encode() for breaker in breakers]
    expected = np.zeros(len(WORDS))
    for token, penalty in plain_generation.dry(tokens, spelled, 0.8, base, allowed, window, raw).items():
        expected[token] = penalty
    np.testing.assert_allclose(penalties(tokens, split, context, sampling), expected, rtol=1e-12)


@given(st.lists(st.integers(0, 2)))
def test_the_z_algorithm(tokens):
    expected = [
        next((n for n in range(len(tokens) - at) if tokens[n] != tokens[at + n]), len(tokens) - at) if at else 0
        for at in range(len(tokens))
    ]
    assert prefix_matches(tokens).tolist() == expected


def test_an_example():
    """b followed "a b a" and "a"; a followed "a b", behind which only a stands: the longest counts."""
    sampling = Sampling(dry_multiplier=2.0, dry_base=3.0, dry_allowed_length=1, dry_sequence_breakers=())
    np.testing.assert_array_equal(penalties([0, 1, 0, 1, 0], 5, 100, sampling)[:2], [0.0, 2.0 * 3**2])


def test_penalties_stay_numbers():
    sampling = Sampling(dry_multiplier=1e300, dry_base=1e30, dry_sequence_breakers=())
    assert 0 < penalties([0] * 40, 40, 100, sampling)[0] < 1e39


@pytest.mark.parametrize("different", [1, 2, 3])
def test_the_z_algorithm_is_linear(different: int) -> None:
    """Two comparisons a token at most, where each with each would be 50 million."""
    compared = 0

    class Token(int):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return int(self) == other

        __hash__ = int.__hash__

    prefix_matches([Token(at % different) for at in range(10_000)])
    assert compared <= 20_000


# Beside llama.cpp -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def their_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Any:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install '.[peers]'")
    config = tiny_config()
    path: Path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, config, random_weights(config))
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return llama_cpp, model


def their_penalties(vocabulary: Any, tokens: list[int], vocab: int, sampling: Sampling) -> np.ndarray:
    """f32 [vocab], by llama.cpp's sampler of logits 0."""
    llama_cpp, model = vocabulary
    breakers = [breaker.encode() for breaker in sampling.dry_sequence_breakers]
    array = (ctypes.c_char_p * max(1, len(breakers)))(*breakers)
    handle = llama_cpp.llama_model_get_vocab(model.model)
    of_the_model = [64] if len(llama_cpp.llama_cpp._lib.llama_sampler_init_dry.argtypes) == 8 else []
    sampler = llama_cpp.llama_sampler_init_dry(
        handle, *of_the_model, sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length,
        sampling.dry_penalty_last_n, array, len(breakers),
    )  # fmt: skip
    data = (llama_cpp.llama_token_data * vocab)()
    for token in range(vocab):
        data[token].id = token
    candidates = llama_cpp.llama_token_data_array(data=data, size=vocab, selected=-1, sorted=False)
    for token in tokens:
        llama_cpp.llama_sampler_accept(sampler, token)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(candidates))
    llama_cpp.llama_sampler_free(sampler)
    return -np.array([data[token].logit for token in range(vocab)])


@pytest.mark.parametrize("seed", range(40))
def test_as_llama_cpp_has_it(their_vocabulary: Any, seed: int) -> None:
    model = Model(tiny_containers.container("gqa"), tiny_containers.llama("gqa"))
    generator = np.random.default_rng(seed)
    vocab = 300  # llama.cpp has no rows beyond the tokenizer's
    tokens = generator.choice(generator.choice(vocab, 4), 60).tolist()
    breakers = generator.choice(["\n", ":", "e", "q", " "], int(generator.integers(0, 4)), replace=False).tolist()
    sampling = Sampling(
        dry_multiplier=0.7, dry_base=float(generator.choice([1.0, 1.5, 1.75])), dry_sequence_breakers=breakers,
        dry_allowed_length=int(generator.integers(0, 4)), dry_penalty_last_n=int(generator.choice([1, 3, 20, 64])),
    )  # fmt: skip
    expected = their_penalties(their_vocabulary, tokens, vocab, sampling)
    dry = Dry(sampling, model.tokenizer.spelled, 64, tokens)
    np.testing.assert_allclose(-dry.penalised(np.zeros(vocab)), expected, rtol=1e-5)


# Generation -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(tiny_containers.container("gqa"), tiny_containers.llama("gqa"))


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.7, "top_k": 30}], ids=["greedy", "drawn"])
def test_tokens_are_the_plain_ones(model: Model, fields: dict[str, Any]) -> None:
    """From a length of 0 on, because a tiny model of random weights repeats single tokens alone."""
    prompt = model.tokenizer.encode("The quick brown fox")
    dry = {"dry_multiplier": 5.0, "dry_allowed_length": 0}
    logits, spelled = plain_generation.Logits(model.llama, prompt), model.tokenizer.spelled
    expected = plain_generation.sample(logits, 50, model.tokenizer.eos_ids, 3, spelled=spelled, **dry, **fields)
    asked: Any = {"max_new_tokens": 50, "seed": 3, **fields}
    found = model.generate("The quick brown fox", **asked, **dry).token_ids
    assert found == expected
    assert found != model.generate("The quick brown fox", **asked).token_ids


def test_off_by_default() -> None:
    assert not Sampling().dry
    assert not Sampling().changes_logits
    assert not Sampling(dry_multiplier=0.8, dry_penalty_last_n=0).changes_logits
    assert Sampling(dry_multiplier=0.8).changes_logits


def test_breakers_need_the_text_of_tokens(model: Model) -> None:
    with pytest.raises(GenerationError, match="dry_multiplier needs the text of tokens"):
        next(generate_tokens(model.llama, [1, 2], 2, Sampling(dry_multiplier=1.0), lambda token: False))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dry_multiplier", -0.1, "must be 0 or more, not -0.1"),
        ("dry_multiplier", float("nan"), "finite"),
        ("dry_base", 0.9, "must be 1 or more, not 0.9"),
        ("dry_allowed_length", -1, "must be 0 or more"),
        ("dry_allowed_length", 1.5, "whole number"),
        ("dry_penalty_last_n", -2, "must be -1 or more"),
        ("dry_sequence_breakers", "ab", "list of strings, not str"),
        ("dry_sequence_breakers", [""], "1 to 256 characters"),
        ("dry_sequence_breakers", ["x" * 257], "1 to 256 characters"),
        ("dry_sequence_breakers", [3], "must be a str, not int"),
        ("dry_sequence_breakers", ["x"] * 65, "65 strings, of 64 at most"),
    ],
)
def test_values_that_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(GenerationError, match=message) as caught:
        Sampling(**{field: value})
    assert field in str(caught.value)
