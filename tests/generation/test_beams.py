"""Beam search against a plain one in NumPy on the same logits, and against transformers'."""

from __future__ import annotations

import numpy as np
import plain_generation
import pytest
import tiny_containers

from spqt_ti.api import Model
from spqt_ti.errors import GenerationError
from spqt_ti.generation.beams import Beams, Found, beam_search
from spqt_ti.generation.constraint import Constraint
from spqt_ti.model.runner import Llama

PROMPT = [5, 17, 42, 99, 256, 7]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(tiny_containers.container("gqa"), tiny_containers.llama("gqa"))


@pytest.fixture(params=[0.0, 0.3], ids=["dense", "sparse"])
def llama(model, request):
    model.llama.thresholds[:] = request.param
    yield model.llama
    model.llama.thresholds[:] = 0


def search(llama: Llama, width: int, most: int, eos=(), penalty: float = 1.0, matcher=None) -> list[Found]:
    return beam_search(llama, PROMPT, most, Beams(width, penalty), eos, matcher)[0]


def likely(llama: Llama) -> list[int]:
    """Tokens that good texts have: as ends of text they cut some beams short."""
    best = search(llama, 4, 8)
    return [best[0].tokens[2], best[1].tokens[4]]


@pytest.mark.parametrize(
    ("width", "penalty", "ends"), [(1, 1.0, 1), (2, 0.0, 1), (4, 1.0, 0), (4, 1.0, 2), (5, -0.7, 2), (3, 2.0, 1)]
)
def test_as_the_plain_one_on_the_same_logits(llama, width, penalty, ends):
    eos = set(likely(llama)[:ends])
    expected = plain_generation.beam_search(plain_generation.Logits(llama, PROMPT), width, 7, eos, penalty)
    found = search(llama, width, 7, eos, penalty)
    assert [tuple(one.tokens) for one in found] == [tokens for _, tokens in expected]
    np.testing.assert_allclose([one.score for one in found], [score for score, _ in expected], rtol=1e-12)
    for one in found:
        assert one.finish_reason == ("stop" if one.tokens[-1] in eos else "length")
        assert one.score == pytest.approx(one.log_probability / len(one.tokens) ** penalty)


@pytest.mark.parametrize("ends", [0, 1])
def test_as_transformers_in_float64(model, ends):
    transformers_models = pytest.importorskip("transformers_models")
    torch = transformers_models.torch
    other = transformers_models.of_container(model.container)
    eos = likely(model.llama)[:ends]
    other.generation_config.eos_token_id = eos or None
    out = other.generate(
        torch.tensor([PROMPT]), num_beams=4, num_return_sequences=4, max_new_tokens=9, do_sample=False,
        return_dict_in_generate=True, output_scores=True, eos_token_id=eos or None, pad_token_id=0,
    )  # fmt: skip
    found = search(model.llama, 4, 9, set(eos))
    for one, tokens, score in zip(found, out.sequences.tolist(), out.sequences_scores.tolist(), strict=True):
        assert one.tokens == tokens[len(PROMPT) :][: len(one.tokens)]
        assert one.score == pytest.approx(score, abs=2e-3)


def test_one_beam_is_greedy(model):
    greedy = model.generate("The quick brown fox", max_new_tokens=12)
    (one,) = model.beam_search("The quick brown fox", beams=1, max_new_tokens=12).beams
    assert (one.token_ids, one.text, one.finish_reason) == (greedy.token_ids, greedy.text, greedy.finish_reason)


def test_more_beams_find_likelier_texts(model):
    best = [search(model.llama, width, 10)[0].log_probability for width in (1, 8)]
    assert best[1] > best[0]


def test_the_context_ends_it(model):
    prompt = [7] * 60
    found, _ = beam_search(model.llama, prompt, 100, Beams(2), ())
    assert [len(one.tokens) for one in found] == [5, 5]
    assert {one.finish_reason for one in found} == {"context"}
    found, _ = beam_search(model.llama, [7] * 64, 100, Beams(3), ())
    assert [len(one.tokens) for one in found] == [1, 1, 1]


def test_what_it_cost(model):
    stats = beam_search(model.llama, PROMPT, 6, Beams(3), ())[1]
    assert stats.decode_tokens == 3 * 5
    assert stats.prompt_tokens == len(PROMPT)


def test_a_generation_afterwards_is_as_before(model):
    before = model.generate("The quick brown fox", max_new_tokens=12).token_ids
    model.beam_search("The quick brown fox", beams=3, max_new_tokens=12)
    assert model.generate("The quick brown fox", max_new_tokens=12).token_ids == before


def test_of_a_form(model):
    pytest.importorskip("llguidance")
    found = model.beam_search("The", beams=5, constraint=Constraint("regex", "[ab][cd]")).beams
    texts = ["ac", "ad", "bc", "bd"]
    assert sorted(beam.text for beam in found) == texts  # no more than there are
    assert sorted((beam.log_probability for beam in found), reverse=True) == [b.log_probability for b in found]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams must be 1 or more, not 0"),
        ({"beams": 65}, "there may be 64 beams, not 65"),
        ({"length_penalty": float("nan")}, "length_penalty must be a finite number"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more"),
    ],
)
def test_what_is_refused(model, options, message):
    with pytest.raises(GenerationError, match=message):
        model.beam_search("The", **options)
