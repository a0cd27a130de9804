"""The text of an answer while its tokens come: whole characters, up to the end of the model or a stop string."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from spqt_ti import checks
from spqt_ti.errors import GenerationError
from spqt_ti.generation.tokenizer import TokenStream

_MOST_STOPS, _LONGEST_STOP = 64, 4096


def checked_stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings as a tuple. GenerationError for anything but some strings that are not empty."""
    strings = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(strings, Sequence) or isinstance(strings, bytes):
        raise GenerationError(f"stop is a string or a list of strings, not {type(strings).__name__}")
    for string in strings:
        if not 0 < len(checks.text("a stop string", string)) <= _LONGEST_STOP:
            raise GenerationError(f"a stop string has 1 to {_LONGEST_STOP} characters, not {len(string)}")
    if len(strings) > _MOST_STOPS:
        raise GenerationError(f"there may be {_MOST_STOPS} stop strings, not {len(strings)}")
    return tuple(strings)


class Answer:
    """Takes tokens with `ends`, gives the text that became certain with `take`.

    The text ends before the first stop string in it, and before an end-of-sequence token. What may yet become a stop
    string is held back.
    """

    def __init__(self, decoder: TokenStream, eos_ids: Collection[int], stop: Sequence[str] = ()) -> None:
        self._decoder, self._eos_ids, self._stop = decoder, eos_ids, stop
        self._ready = self._held = ""
        self._over = False

    def ends(self, token: int) -> bool:
        """Take a token; True where the text is over. Tokens after that one are not asked about."""
        if token in self._eos_ids:
            self._over = True
            return True
        return self._add(self._decoder.push(token))

    def take(self, *, last: bool = False) -> str:
        """The text since the last call. `last`: no token follows, so what was held back is text after all."""
        if last:
            if not self._over:
                self._add(self._decoder.finish())
            self._ready, self._held = self._ready + self._held, ""
        text, self._ready = self._ready, ""
        return text

    def _add(self, text: str) -> bool:
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self._ready, self._held, self._over = self._ready + text[: min(found)], "", True
            return True
        kept = max((overlap(text, stop) for stop in self._stop), default=0)
        self._ready += text[: len(text) - kept]
        self._held = text[len(text) - kept :]
        return False


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that a stop string begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
