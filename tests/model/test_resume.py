"""Sequences that take turns in one KV cache: each goes on with the bits that it has alone."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_containers

from spqt_ti.backend import requested
from spqt_ti.errors import GenerationError
from spqt_ti.model.runner import Llama

pytestmark = pytest.mark.any_backend
PROMPT = [5, 17, 42, 99, 256, 7]
TAILS = ([3, 30, 200, 4, 8, 15, 16, 23, 42, 11, 12, 13], [9, 8, 7, 6, 5, 4, 3, 100, 101, 102, 103, 104])


@pytest.fixture(params=[True, False], ids=["f32", "16-bit"])
def llama(request) -> Llama:
    if not request.param and requested() != "cpu":
        pytest.skip("GPUs always multiply in f32")
    found = tiny_containers.llama("gqa", exact=request.param)
    found.thresholds[:] = 0.3
    return found


def alone(llama: Llama, tail: list[int]) -> list[np.ndarray]:
    llama.reset()
    llama.prefill(PROMPT)
    return [llama.decode(token).copy() for token in tail]


def test_turns_have_the_bits_of_sequences_alone(llama):
    expected = [alone(llama, tail) for tail in TAILS]
    llama.reset()
    llama.prefill(PROMPT)
    rows: list[list[np.ndarray]] = [[], []]
    for at in range(len(TAILS[0])):
        for beam, tail in enumerate(TAILS):
            llama.resume(len(PROMPT), rows[beam])
            np.testing.assert_array_equal(llama.decode(tail[at]), expected[beam][at])
            rows[beam].append(llama.keys_and_values(len(PROMPT) + at))
    llama.thresholds[:] = 0


def test_what_prefill_left_is_no_longer_there(llama):
    llama.reset()
    llama.prefill(PROMPT)
    llama.decode(3)
    row = llama.keys_and_values(len(PROMPT))
    llama.resume(4, [row])
    assert llama.position == 5
    assert llama.rewind(PROMPT) == 4
    llama.thresholds[:] = 0


def test_no_room(llama):
    llama.thresholds[:] = 0
    llama.reset()
    llama.prefill(PROMPT)
    row = llama.keys_and_values(5)
    with pytest.raises(GenerationError, match="65 tokens do not fit the context of 64"):
        llama.resume(64, [row])
