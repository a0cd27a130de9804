"""The text of an answer: where it ends, and that what is held back comes out in the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spqt_ti.errors import GenerationError
from spqt_ti.generation.answer import Answer, checked_stops

EOS = 999


class Letters:
    """A decoder whose tokens are code points."""

    def push(self, token: int) -> str:
        return chr(token)

    def finish(self) -> str:
        return ""


def answered(text: str, stop: list[str]) -> tuple[str, int]:
    """What is streamed of a text, letter by letter, and how many letters were taken."""
    answer, pieces = Answer(Letters(), {EOS}, stop), []
    for count, letter in enumerate(text, 1):
        if answer.ends(ord(letter)):
            return "".join(pieces) + answer.take(last=True), count
        pieces.append(answer.take())
        assert not any(string in "".join(pieces) for string in stop)
    return "".join(pieces) + answer.take(last=True), len(text)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string(text, stop):
    """As soon as a prefix of the text has one; of several that end together the first to begin counts."""
    taken = next((n for n in range(len(text) + 1) if any(string in text[:n] for string in stop)), None)
    if taken is None:
        assert answered(text, stop) == (text, len(text))
    else:
        starts = [text[:taken].find(string) for string in stop]
        assert answered(text, stop) == (text[: min(start for start in starts if start >= 0)], taken)


def test_only_what_may_become_a_stop_string_is_held_back():
    answer = Answer(Letters(), {EOS}, ["xyz"])
    pieces = []
    for letter in "axyxyab":
        answer.ends(ord(letter))
        pieces.append(answer.take())
    assert pieces == ["a", "", "", "xy", "", "xya", "b"]


def test_an_end_token_is_no_text_and_gives_out_what_was_held_back():
    answer = Answer(Letters(), {EOS}, ["xyz"])
    assert [answer.ends(token) for token in (ord("x"), ord("y"), EOS)] == [False, False, True]
    assert answer.take(last=True) == "xy"


@pytest.mark.parametrize("stop", [3, [""], ["a", 3], [b"a"], b"a", ["a" * 5000], ["a"] * 65, ["\ud800"]])
def test_strings_that_are_refused(stop):
    with pytest.raises(GenerationError):
        checked_stops(stop)


def test_strings():
    assert checked_stops(None) == ()
    assert checked_stops("a") == ("a",)
    assert checked_stops(["a", "bc"]) == ("a", "bc")
