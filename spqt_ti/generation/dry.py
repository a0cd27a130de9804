"""DRY, "don't repeat yourself": a penalty on tokens that would make a repetition longer.

Where the last n tokens were there before, the token that followed them then would be their n + 1st that repeats. Its
logit loses multiplier * base^(n - allowed length), by its longest repetition. Text that may recur, such as the names in
front of a chat's messages, is kept out by sequence breakers: a repetition is counted from behind the last one.

The rule is p-e-w's (text-generation-webui, pull request 5677), with the names and bounds of llama.cpp. Breakers are
looked for in the text of the tokens, so that one is found however the tokens cut it; llama.cpp knows one that
takes several tokens in its tokenizer's own cut alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from spqt_ti.generation.sampling import Sampling

I64Array = npt.NDArray[np.int64]

_LARGEST = float(np.finfo(np.float32).max)  # of a penalty: repetitions grow without end, and logits stay numbers


class Dry:
    """The penalty while one text grows. A token takes a pass over the window, in NumPy.

    `spelled`: the text of a token, control tokens spelled out. `context`: the longest window, and that of
    `dry_penalty_last_n` -1. `tokens`: the text's first ones.
    """

    def __init__(
        self, sampling: Sampling, spelled: Callable[[int], bytes], context: int, tokens: Sequence[int]
    ) -> None:
        last_n = sampling.dry_penalty_last_n
        self._window = context if last_n < 0 else min(last_n, context)
        self._multiplier, self._base = sampling.dry_multiplier, sampling.dry_base
        self._allowed = sampling.dry_allowed_length
        self._breakers = [breaker.encode() for breaker in sampling.dry_sequence_breakers]
        self._spelled = spelled
        self._before = b""  # the text's last bytes, in which a breaker may have begun
        self._longest = max(map(len, self._breakers), default=0)
        self._since_break = 0  # tokens
        first = np.asarray(tokens, np.int64)[max(0, len(tokens) - self._window) :]
        for token in first.tolist():
            self._look_for_break(token)
        self._count = len(first)
        self._tokens = np.zeros(2 * self._window + 1, np.int64)
        # Of each place behind a token: how many tokens up to there are the last ones of the text. The last place means
        # nothing.
        self._repeated = np.zeros(len(self._tokens) + 1, np.int64)
        self._tokens[: self._count] = first
        self._repeated[1 : self._count + 1] = prefix_matches(first[::-1].tolist())[::-1]

    def note(self, token: int) -> None:
        """The text's next token."""
        self._look_for_break(token)
        if self._count == len(self._tokens):  # only the window is needed
            self._tokens[: self._window] = self._tokens[-self._window :]
            self._repeated[1 : self._window + 1] = self._repeated[-self._window :]
            self._count = self._window
        same = self._tokens[: self._count] == token
        self._repeated[1 : self._count + 1] = np.where(same, self._repeated[: self._count] + 1, 0)
        self._tokens[self._count] = token
        self._count += 1

    def penalised(self, values: np.ndarray) -> np.ndarray:
        """Logits f64 [vocab] less the penalties, in place."""
        if self._since_break < self._allowed:
            return values
        start = max(0, self._count - self._window)
        places = np.arange(start + 1, self._count)  # behind a token that another follows, in the window
        lengths = np.minimum(self._repeated[places], places - start)
        lengths = np.minimum(lengths, self._since_break)
        places, lengths = places[lengths >= self._allowed], lengths[lengths >= self._allowed]
        followers, which = np.unique(self._tokens[places], return_inverse=True)
        longest = np.zeros(len(followers), np.int64)
        np.maximum.at(longest, which, lengths)
        with np.errstate(over="ignore"):
            penalties = np.minimum(self._multiplier * self._base ** (longest - self._allowed), _LARGEST)
        free = [any(breaker in self._spelled(token) for breaker in self._breakers) for token in followers.tolist()]
        values[followers] -= np.where(free, 0, penalties)
        return values

    def _look_for_break(self, token: int) -> None:
        new = self._spelled(token)
        text = self._before + new
        # A breaker that ends in this token ends behind what was there before.
        ended = any(text.find(one, max(0, len(self._before) - len(one) + 1)) >= 0 for one in self._breakers)
        self._since_break = 0 if ended else self._since_break + 1
        self._before = text[max(0, len(text) - max(0, self._longest - 1)) :]


def prefix_matches(tokens: Sequence[int]) -> I64Array:
    """For each place, how many tokens from there on are those that the sequence begins with: the Z algorithm, in linear
    time. At place 0 it is 0.
    """
    found = [0] * len(tokens)
    left = right = 0  # the match known that reaches furthest: tokens[left:right]
    for place in range(1, len(tokens)):
        length = min(found[place - left], right - place) if place < right else 0
        if place + length >= right:
            while place + length < len(tokens) and tokens[length] == tokens[place + length]:
                length += 1
            left, right = place, place + length
        found[place] = length
    return np.asarray(found, np.int64)
