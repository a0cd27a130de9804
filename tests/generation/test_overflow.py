"""What happens where the context is full: the window that slides goes on as after a prompt of what it holds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tiny_containers

from spqt_ti.api import Model
from spqt_ti.errors import GenerationError
from spqt_ti.generation import overflow
from spqt_ti.generation.loop import Step, generate_tokens
from spqt_ti.generation.sampling import Sampling

CONTEXT = 64
TOKENS = [5, 17, 42, 99, 256, 7]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(tiny_containers.container("gqa"), tiny_containers.llama("gqa"))


def steps(model: Model, prompt: list[int], count: int, keep: int | None, **sampling) -> list[Step]:
    return list(generate_tokens(model.llama, prompt, count, Sampling(**sampling), lambda token: False, keep=keep))


@pytest.mark.parametrize("threshold", [0.0, 0.3], ids=["dense", "sparse"])
@pytest.mark.parametrize("keep", [0, 4, 6])
def test_it_goes_on_as_after_a_prompt_of_the_window(model, keep, threshold):
    """Twice: each time as many tokens as the window leaves free, and one."""
    model.llama.thresholds[:] = threshold
    made = steps(model, TOKENS, 120, keep)
    assert [step.finish_reason for step in made] == [None] * 119 + ["length"]
    sequence = [*TOKENS, *(step.token for step in made)]
    prompt, done = TOKENS, len(TOKENS)
    slides = -1
    while done < len(sequence):
        alone = [step.token for step in steps(model, prompt, 120, None)]
        assert alone[: len(sequence) - done] == sequence[done : done + len(alone)]
        done, slides = done + len(alone), slides + 1
        prompt = overflow.window([*prompt, *alone], keep, CONTEXT)
    assert made[-1].stats is not None
    assert made[-1].stats.slides == slides >= 2
    model.llama.thresholds[:] = 0


@pytest.mark.parametrize("options", [{"temperature": 1.0, "seed": 3}, {"frequency_penalty": 100.0}], ids=str)
def test_draws_and_penalties_go_on(model, options):
    """The generator is not started anew, and what was said counts even where the window has lost it."""
    made = [step.token for step in steps(model, TOKENS, 100, 4, **options)]
    first = [step.token for step in steps(model, TOKENS, 100, None, **options)]
    assert made[: len(first)] == first
    assert len(made) == 100
    assert len(set(made)) == 100 or "temperature" in options


@pytest.mark.parametrize("length", [CONTEXT - 1, CONTEXT, CONTEXT + 1, 200])
def test_a_prompt_that_is_too_long_loses_its_middle(model, length):
    prompt = np.random.default_rng(1).integers(3, 250, length).tolist()
    shown = prompt if length <= CONTEXT else [*prompt[:4], *prompt[-30:]]
    assert [s.token for s in steps(model, prompt, 1, 4)] == [s.token for s in steps(model, shown, 1, None)]
    assert len(steps(model, prompt, 20, 4)) == 20


@pytest.mark.parametrize(("keep", "fits"), [(32, True), (33, False), (64, False)])
def test_a_start_of_more_than_half_is_refused(keep, fits):
    tokens = list(range(65))
    if fits:
        assert overflow.window(tokens, keep, CONTEXT) == [*tokens[:keep], *tokens[-16:]]
        return
    with pytest.raises(GenerationError, match="more than half of the context of 64"):
        overflow.window(tokens, keep, CONTEXT)


def encode(messages) -> list[int]:
    """A number of each message's letters, and one in front."""
    return [token for message in messages for token in (ord(message["role"][0]), *map(ord, message["content"]))]


def conversation(turns: int, system: bool = True) -> list[dict[str, str]]:
    said = [{"role": "system", "content": "be kind"}] if system else []
    for turn in range(turns):
        said += [{"role": "user", "content": f"{turn:09}"}, {"role": "assistant", "content": f"{turn:09}"}]
    return [*said, {"role": "user", "content": "last"}]


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("turns", [0, 1, 4, 5, 6, 30])
def test_oldest_turns_go_first(turns, system):
    messages = conversation(turns, system)
    kept = overflow.recent(messages, encode, 100)
    assert len(encode(kept)) <= 100
    assert kept[-1] == messages[-1]
    assert not system or kept[0] == messages[0]
    rest = list(kept[system:])
    assert rest == messages[len(messages) - len(rest) :]
    assert rest[0]["role"] == "user"
    assert (list(kept) == messages) == (len(encode(messages)) <= 100)


def test_a_growing_conversation_keeps_its_beginning_for_a_while():
    """Otherwise the KV cache would have nothing of each turn's prompt."""
    firsts = [overflow.recent(conversation(turns), encode, 200)[1]["content"] for turns in range(60)]
    changes = sum(one != other for one, other in itertools.pairwise(firsts[1:]))
    assert changes <= 60 * 20 / 100 + 1


def test_a_last_message_that_does_not_fit_stays():
    messages = [*conversation(3)[:-1], {"role": "user", "content": "x" * 300}]
    assert list(overflow.recent(messages, encode, 100)) == [messages[0], messages[-1]]


def test_the_system_prompt_is_what_a_window_keeps():
    assert overflow.start_of(conversation(2), encode) == len("sbe kindu")
    assert overflow.start_of(conversation(2, system=False), encode) == overflow.SINKS


def test_a_chat_that_is_too_long(model):
    said = [{"role": "system", "content": "S"}]
    for turn in range(12):
        said += [{"role": "user", "content": f"Hello {turn}"}, {"role": "assistant", "content": "Yes."}]
    said.append({"role": "user", "content": "Go"})
    with pytest.raises(GenerationError, match="do not fit the context of 64"):
        model.generate(said, max_new_tokens=4)
    kept = overflow.recent(said, model.tokenizer.encode_chat, CONTEXT)
    expected = model.generate(kept, max_new_tokens=4).token_ids
    assert model.generate(said, max_new_tokens=4, on_overflow="slide").token_ids == expected


def test_text(model):
    text, asked = "The quick brown fox", {"max_new_tokens": 150, "logit_bias": {2: -100.0}}
    assert model.generate(text, **asked).finish_reason == "context"
    found = model.generate(text, **asked, on_overflow="slide")
    assert found.finish_reason == "length"
    assert len(found.token_ids) == 150
    with pytest.raises(GenerationError, match='on_overflow is "stop" or "slide", not \'roll\''):
        model.generate(text, on_overflow="roll")
