"""One model, many callers: threads, streams that overlap, and processes that are forked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_models import random_weights, tiny_config, write_huggingface

import spqt_ti
from spqt_ti.api import Model
from spqt_ti.convert.quantize import quantize
from spqt_ti.errors import GenerationError

TOKENS = [5, 17, 42]
PROMPTS = ["The quick brown fox", "In the beginning", "A small model", "numbers such as 123"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    config = tiny_config(eos_token_ids=())
    source = write_huggingface(folder / "source", config, random_weights(config))
    return quantize(source, folder / "quantized", progress=False).path


@pytest.fixture(scope="module")
def loaded(folder) -> Model:
    return spqt_ti.load(folder, threads=1)


@pytest.fixture
def model(loaded) -> Iterator[Model]:
    loaded.apply(None)
    yield loaded
    loaded.apply(None)


def in_threads(works: list[Callable[[], object]]) -> list[object]:
    """Results, or what was raised, of works that begin together in a thread each."""
    results: list[object] = [None] * len(works)
    begin = threading.Barrier(len(works))

    def run(place: int, work: Callable[[], object]) -> None:
        begin.wait()
        try:
            results[place] = work()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    return results


# Threads --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 3}], ids=["greedy", "drawn"])
def test_generations_of_threads_wait_for_one_another(model, options):
    expected = [model.generate(prompt, max_new_tokens=24, **options).token_ids for prompt in PROMPTS]

    def generate(prompt: str) -> Callable[[], object]:
        return lambda: model.generate(prompt, max_new_tokens=24, **options).token_ids

    assert in_threads([generate(prompt) for prompt in PROMPTS * 3]) == expected * 3


def test_streams_of_threads_are_right_or_refused(model):
    expected = [model.generate(prompt, max_new_tokens=24).token_ids for prompt in PROMPTS]

    def stream(prompt: str) -> Callable[[], object]:
        return lambda: [piece.token for piece in model.stream(prompt, max_new_tokens=24)]

    results = in_threads([stream(prompt) for prompt in PROMPTS * 3])
    for result, right in zip(results, expected * 3, strict=True):
        assert result == right or (isinstance(result, GenerationError) and "another call" in str(result))
    assert any(isinstance(result, list) for result in results)  # the last to begin is not overtaken


def test_two_models_in_two_threads(model, folder):
    other = spqt_ti.load(folder, threads=1, exact=True)
    expected = [one.logits(TOKENS).tobytes() for one in (model, other)]
    works = [lambda: model.logits(TOKENS).tobytes(), lambda: other.logits(TOKENS).tobytes()]
    assert in_threads(works * 4) == expected * 4


# Overlapping streams --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "between",
    [
        lambda model: next(model.stream(PROMPTS[1])),
        lambda model: model.generate(PROMPTS[0], max_new_tokens=4),
        lambda model: model.logits(TOKENS),
        lambda model: model.logits(model.tokenizer.encode(PROMPTS[0]), mode="decode"),
        lambda model: model.llama.reset(),
        lambda model: model.llama.decode(7),
        lambda model: list(model.llama.layers(model.llama.embed([7]), 0)),
    ],
    ids=["stream", "generate", "logits", "decode", "reset", "token", "layers"],
)
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}], ids=["greedy", "drawn"])
def test_an_overtaken_stream_says_so(model, between, options):
    stream = model.stream(PROMPTS[0], max_new_tokens=200, **options)
    next(stream)
    between(model)
    with pytest.raises(GenerationError, match=r"another call .* has used the model"):
        list(stream)


def test_a_stream_that_has_not_begun_is_not_overtaken(model):
    expected = model.generate(PROMPTS[0], max_new_tokens=8).token_ids
    stream = model.stream(PROMPTS[0], max_new_tokens=8)
    model.logits(TOKENS)
    assert [piece.token for piece in stream] == expected


@pytest.mark.parametrize("end", [lambda stream: stream.close(), lambda stream: None], ids=["closed", "abandoned"])
def test_a_stream_left_half_way_frees_the_model(model, end):
    expected = model.generate(PROMPTS[1], max_new_tokens=8).token_ids
    stream = model.stream(PROMPTS[0], max_new_tokens=200)
    next(stream)
    end(stream)
    assert in_threads([lambda: model.generate(PROMPTS[1], max_new_tokens=8).token_ids]) == [expected]


def test_a_stream_may_move_between_threads(model):
    expected = model.generate(PROMPTS[0], max_new_tokens=8).token_ids
    stream = model.stream(PROMPTS[0], max_new_tokens=8)
    tokens = [in_threads([lambda: next(stream).token])[0] for _ in range(8)]
    assert tokens == expected


# Forks ----------------------------------------------------------------------------------------------------------------

FORK = """
import os, sys, threading
import spqt_ti
from spqt_ti import backend
if sys.argv[2] == "before":
    child = os.fork()  # nothing has started yet: the child starts its own
    model = spqt_ti.load(sys.argv[1], threads=1)
else:
    model = spqt_ti.load(sys.argv[1], threads=1)
    print(model.logits([5, 17])[0, :2], flush=True)
    if sys.argv[2] == "busy":  # another thread holds the model while the process is forked
        begun = threading.Event()
        def hold():
            with model.llama.exclusive(), backend.guard.LOCK:
                begun.set()
                threading.Event().wait(2)
        threading.Thread(target=hold).start()
        begun.wait()
    child = os.fork()
if child == 0:
    calls = [lambda: model.logits([5, 17]), lambda: model.generate("hello", max_new_tokens=2), backend.ti.sync,
             lambda: spqt_ti.load(sys.argv[1], threads=1)]
    for call in calls:
        try:
            call()
            print("ran", flush=True)
        except spqt_ti.SpqtError as error:
            print(type(error).__name__, "forked" in str(error), flush=True)
    sys.exit(7)
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
model.logits([5, 17])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize(
    ("when", "said"), [("before", "ran"), ("after", "BackendError True"), ("busy", "BackendError True")]
)
def test_a_forked_process(folder, when, said):
    """It cannot use what its parent started: an error at the first launch, and an end in time."""
    command = [sys.executable, "-c", FORK, str(folder), when]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-5:] == [said] * 4 + ["child 7"]
    assert not done.stderr
