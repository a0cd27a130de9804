"""The time that a tokenizer's own regular expressions take is bounded before they are run.

`tokenizer.json` brings patterns for `Split` and `Replace`. The library gives up on one match after some ten million
steps, but not on a text with many starts. Patterns whose time may grow without a bound are refused when the file is
read (regex_shape.py). Of the others the steps are estimated for each text, from the longest stretches that their
repetitions can cover in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import Regex, pre_tokenizers

from spqt_ti.errors import CheckpointError, GenerationError
from spqt_ti.sources.gguf_words import WORDS
from spqt_ti.sources.regex_shape import Path, UnboundedPatternError, shape_of

_MOST_STEPS = 1 << 28  # of one text; the library makes 2 to 4 of them in 10 ns
_MOST_PATTERNS = 64
_UNICODE_GROWTH = 16  # NFKC makes 18 characters of U+FDFA, 33 bytes of three
_COUNTED = {"Sequence", "Replace", "Prepend", "ByteLevel", "Precompiled", "Strip", "StripAccents"}
_SPACES = (r"\s*[\r\n]+|\s+(?!\S)|\s+", r"\s*[\r\n]|\s+(?!\S)|\s+", r"\s+(?!\S)|\s+", r"\s++$|\s*[\r\n]|\s+(?!\S)|\s")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HAN_UPPER, _HAN_LOWER = (f"[{kind[1:-1]}&&[^\\p{{Han}}]]" for kind in (_UPPER, _LOWER))
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def _words(upper: str, lower: str, ending: str) -> str:
    """Words with one case after the other, as GPT-4o's pattern has them."""
    return f"{_BEFORE}{upper}*{lower}+{ending}|{_BEFORE}{upper}+{lower}*{ending}"


# Words and signs of public tokenizers. What one alternative of them tries and gives back, a later one takes whole, so
# that their time grows with the text's length alone.
_PUBLIC_WORDS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++",
    *(
        rf"{contractions}|[^\r\n\p{{L}}\p{{N}}]?{letters}|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]{signs}[\r\n]{lines}"
        for contractions, letters, signs in (
            (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"\p{L}+", "+"),
            (r"'(?i:[sdmt]|ll|ve|re)", r"\p{L}+", "+"),
            (r"'(?i:[sdmt]|ll|ve|re)", r"+\p{L}+", "++"),
            (r"'(?i:[sdmt]|ll|ve|re)", r"+\p{L}++", "++"),
        )
        for digits in ("{1,3}", "{1,3}+", "{1,2}", "", "+")
        for lines in ("*", "*+")
    ),
    *(
        rf"{first}{_words(upper, lower, ending)}|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n{slash}]*"
        for first in ("", r"[\p{Han}]+|")
        for upper, lower in ((_UPPER, _LOWER), (_HAN_UPPER, _HAN_LOWER))
        for ending in ("", f"{_ENDING}?")
        for digits in ("{1,3}", "")
        for slash in ("", "/")
    ),
)
_LINEAR = frozenset(
    [f"{words}|{spaces}" for words in _PUBLIC_WORDS for spaces in _SPACES]
    + [pattern for words in WORDS.values() for pattern in words.patterns]
)
# Pre-tokenizers that cut a text and leave its characters.
_CUTTING = {
    "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts",
    "CharDelimiterSplit",
}  # fmt: skip


@dataclass(frozen=True)
class Pattern:
    """One pattern that is run. `normalizes`: before normalizers rather than behind them; `seen`: the text that it gets
    is known without running what stands before it. `paths`: those that it may go back into.
    """

    text: str
    normalizes: bool
    seen: bool
    paths: tuple[Path, ...]

    def most(self, length: int) -> int:
        """Steps that any text of so many characters may take."""
        return sum(path.ways * (length + 1) ** (len(path.retried) + 1) for path in self.paths)

    def steps(self, text: str) -> tuple[int, str, int]:
        """An upper bound of the steps for a text, and its longest stretch: of what, and how long."""
        runs = {source: _runs(source, text) for path in self.paths for source in path.retried}
        longest = {source: max(found, default=0) for source, found in runs.items()}
        total = 0
        for path in self.paths:
            first, *others = path.retried
            # Each of the others is tried at least once, also where it covers nothing.
            others_steps = math.prod(1 + longest[name] for name in others)
            total += path.ways * sum(run * run for run in runs[first]) * others_steps
        worst = max(longest, key=longest.__getitem__)
        return total, worst, longest[worst]


@dataclass(frozen=True)
class PatternCosts:
    """The patterns of one tokenizer whose time does not grow with a text's length alone."""

    patterns: tuple[Pattern, ...]
    growth: int

    @classmethod
    def of(cls, fields: Mapping[str, Any], growth: int) -> PatternCosts:
        """From a `tokenizer.json` whose steps make at most `growth` times more bytes of a text, normal forms of Unicode
        not counted; CheckpointError names a pattern whose time has no bound.
        """
        if any(leaf.get("type") not in _COUNTED for leaf in _leaves(fields.get("normalizer"))):
            growth *= _UNICODE_GROWTH
        found = [*_patterns(fields.get("normalizer"), True), *_patterns(fields.get("pre_tokenizer"), False)]
        list(_patterns(fields.get("decoder"), True))  # compiled, but never run
        return cls(tuple(pattern for pattern in found if pattern.paths), growth)

    def check_added(self, contents: Iterable[str]) -> None:
        """CheckpointError where added tokens, which the library normalizes at once, would take too long."""
        normalizing = [pattern for pattern in self.patterns if pattern.normalizes]
        lengths = [self._most_characters(content) for content in contents] if normalizing else []
        for pattern in normalizing:
            if sum(map(pattern.most, lengths)) > _MOST_STEPS:
                raise CheckpointError(
                    f"the tokenizer's added tokens, of up to {max(lengths)} characters, would take its pattern "
                    f"{pattern.text!r:.200} too long: shorten them, or leave the pattern out"
                )

    def check(self, tokenizer: tokenizers.Tokenizer, text: str) -> None:
        """GenerationError for a text that would take a pattern too long."""
        if not self.patterns:
            return
        length = self._most_characters(text)
        slow = [pattern for pattern in self.patterns if pattern.most(length) > _MOST_STEPS]
        for pattern in slow:
            if not pattern.seen:
                steps, what, longest = pattern.most(length), ".", length
            else:
                normalizer = None if pattern.normalizes else tokenizer.normalizer
                given = normalizer.normalize_str(text) if normalizer is not None else text
                steps, what, longest = pattern.steps(given)
            if steps > _MOST_STEPS:
                raise GenerationError(
                    f"this text may take the tokenizer's pattern {pattern.text!r:.200} {steps:.1e} steps, more than "
                    f"{_MOST_STEPS:.1e}: it has {longest} characters in a row that {what!r:.80} matches; divide it, or "
                    "shorten them"
                )

    def _most_characters(self, text: str) -> int:
        """That any pattern gets of a text; there are never more of them than bytes."""
        return len(text.encode(errors="surrogatepass")) * self.growth


def _patterns(step: Any, normalizes: bool) -> Iterator[Pattern]:
    """Patterns of normalizers or pre-tokenizers, in their order."""
    seen, count = True, 0
    for leaf in _leaves(step):
        pattern = leaf.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        if isinstance(regex, str):
            count += 1
            yield Pattern(regex, normalizes, seen, () if regex in _LINEAR else _retried(regex))
        if count > _MOST_PATTERNS:
            raise CheckpointError(f"the tokenizer has more than {_MOST_PATTERNS} patterns, one after the other")
        if leaf.get("type") != "Sequence":
            seen = seen and not normalizes and leaf.get("type") in _CUTTING


def _leaves(step: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(step, dict):
        return
    yield step
    for name in ("normalizers", "pretokenizers", "decoders"):
        parts = step.get(name)
        yield from itertools.chain.from_iterable(map(_leaves, parts if isinstance(parts, list) else ()))


def _retried(regex: str) -> tuple[Path, ...]:
    try:
        shape = shape_of(regex)
    except UnboundedPatternError as error:
        raise CheckpointError(
            f"the tokenizer's pattern {regex!r:.200} may take any time ({error}): write it without repetitions in "
            "repetitions, back-references and the like, or report it if a public model needs it"
        ) from error
    return tuple(path for path in shape.paths if path.retried)


def _runs(source: str, text: str) -> list[int]:
    """Lengths of all stretches of a text that a repetition of `source` can cover, each as long as it may be."""
    cut = pre_tokenizers.Split(Regex(f"(?:{source})+"), "removed", invert=True)
    return [stop - start for _, (start, stop) in cut.pre_tokenize_str(text)]
