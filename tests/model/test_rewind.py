"""The KV cache that a prompt shares with the one before: never another answer than without it."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_containers

from spqt_ti.backend import requested
from spqt_ti.errors import GenerationError
from spqt_ti.model.runner import Llama


@pytest.fixture(scope="module", params=[True, False], ids=["f32", "16-bit"])
def llama(request) -> Llama:
    """In f32, and in 16 bits where the CPU has them."""
    if not request.param and requested() != "cpu":
        pytest.skip("GPUs always multiply in f32")
    return tiny_containers.llama("gqa", exact=request.param)


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return np.random.default_rng(7).integers(3, 250, 40).tolist()


def fresh(llama: Llama, tokens: list[int]) -> np.ndarray:
    llama.reset()
    return llama.prefill(tokens)[0].copy()


@pytest.mark.parametrize("seed", range(6))
def test_logits_are_those_of_an_empty_cache(llama, tokens, seed):
    """Prompts that share beginnings of any length, with decoded tokens and other uses between them."""
    rng = np.random.default_rng(seed)
    expected = {}
    for length in (40, 25, 12, 1):
        prompt = tokens[:length]
        expected[tuple(prompt)] = fresh(llama, prompt)
        changed = prompt.copy()
        changed[rng.integers(length)] = 251
        expected[tuple(changed)] = fresh(llama, changed)
    prompts = list(expected)
    for number in rng.integers(len(prompts), size=12):
        prompt = list(prompts[number])
        kept = llama.rewind(prompt)
        assert 0 <= kept < len(prompt)
        np.testing.assert_array_equal(llama.prefill(prompt[kept:])[0], expected[prompts[number]])
        for token in rng.integers(3, 250, rng.integers(3)):
            llama.decode(int(token))


def test_how_much_is_kept(llama, tokens):
    fresh(llama, tokens[:20])
    assert llama.rewind(tokens[:20]) == 19  # the last one's logits are asked for
    fresh(llama, tokens[:20])
    assert llama.rewind(tokens[:30]) == 20
    fresh(llama, tokens[:20])
    assert llama.rewind([*tokens[:8], 251, *tokens[9:20]]) == 8
    fresh(llama, tokens[:20])
    assert llama.rewind([251, *tokens[1:]]) == 0


def test_only_what_prefill_filled_is_kept(llama, tokens):
    """Decoded tokens were sparse, masked ones too; `layers` and warming up write over what there was."""
    fresh(llama, tokens[:10])
    llama.decode(tokens[10])
    llama.prefill(tokens[11:20])
    assert llama.rewind(tokens[:30]) == 10
    fresh(llama, tokens[:10])
    llama.prefill(tokens[10:20], masked=True)
    assert llama.rewind(tokens[:30]) == 10
    fresh(llama, tokens[:10])
    list(llama.layers(llama.embed(tokens[:4]), 0))
    assert llama.rewind(tokens[:30]) == 0


def test_a_refused_prompt_changes_nothing(llama, tokens):
    fresh(llama, tokens[:10])
    for bad in ([], [10**6], tokens * 100):
        with pytest.raises(GenerationError):
            llama.rewind(bad)
    assert llama.position == 10
    assert llama.rewind(tokens[:30]) == 10
