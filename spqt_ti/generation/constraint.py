"""Answers that have to be of a form: JSON of a schema, a grammar or a regular expression, through `llguidance`.

The library says after each token which ones may follow; others are taken out of the logits before the sampler sees
them. It works on the bytes of tokens, so one vocabulary serves for tokenizers of every kind.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spqt_ti import bounded_json, checks
from spqt_ti.errors import GenerationError
from spqt_ti.generation.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

_LARGEST = 1 << 62  # of the numbers in a schema
LONGEST = 1 << 16  # bytes of a schema or grammar: the library's limits then hold its work below about two seconds
_TITLES = {"json_schema": "the JSON schema", "lark": "the grammar", "gbnf": "the grammar", "regex": "the expression"}
# Small models otherwise go on with white space, which JSON allows without end. A schema's `x-guidance` may change it.
ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class Constraint:
    """What an answer has to be. `kind`: "json_schema", "lark" (llguidance's dialect), "gbnf" (llama.cpp's) or "regex";
    `text`: the schema, grammar or expression, which has to match the whole answer.

    Raises GenerationError for what llguidance does not take, with its words, and where it is not installed.
    """

    kind: str
    text: str

    def __post_init__(self) -> None:
        if self.kind not in _TITLES:
            raise GenerationError(f"a constraint is one of {', '.join(_TITLES)}, not {self.kind!r}")
        checks.text(self.title, self.text)
        if len(self.text.encode()) > LONGEST:
            raise GenerationError(f"{self.title} has {len(self.text.encode())} bytes, of at most {LONGEST}")
        if self.kind == "json_schema":
            _check_numbers(self.text)
        library = _library()
        wrong = library.LLMatcher.validate_grammar(self.grammar(), limits=_limits(library))
        if wrong and not wrong.startswith("WARNING"):
            raise GenerationError(f"{self.title} cannot be followed: {_line(wrong)}")

    @classmethod
    def json_schema(cls, schema: str | Mapping[str, Any]) -> Constraint:
        """Answers are JSON of this schema: its text, or what json.loads makes of it."""
        text = schema if isinstance(schema, str) else _dumped(schema)
        try:
            bounded_json.parse_object(text)
        except bounded_json.JsonError as error:
            raise GenerationError(f"the JSON schema is no JSON object: {error}") from error
        return cls("json_schema", text)

    @classmethod
    def json_object(cls) -> Constraint:
        """Answers are any JSON object."""
        return cls("json_schema", '{"type": "object"}')

    @property
    def title(self) -> str:
        """What messages call it."""
        return _TITLES[self.kind]

    def grammar(self) -> str:
        """In the library's own form. GenerationError for GBNF that has no such form."""
        library = _library()
        try:
            if self.kind == "json_schema":
                defaults: Any = ONE_LINE
                return library.LLMatcher.grammar_from_json_schema(self.text, defaults=defaults)
            return library.grammar_from(self.kind, self.text)
        except ValueError as error:
            raise GenerationError(f"{self.title} cannot be followed: {_line(str(error))}") from error


class Vocabulary:
    """A tokenizer's tokens as the library wants them; made once for a model, which takes some tenths of a second.

    The tokenizer is used by this alone, under its lock. May be used from several threads.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        library = _library()
        self.size, self._tokenizer, self._lock = vocab_size, tokenizer, threading.Lock()
        ends = sorted(tokenizer.eos_ids)
        # A model without an end of text gets one beyond its vocabulary, which is never drawn.
        self.tokens = [tokenizer.token_bytes(token, skip_special=False) for token in range(vocab_size)] + [b"</>"]
        self.eos_token_id, self.bos_token_id = (ends or [vocab_size])[0], None
        self.special_token_ids = sorted({*tokenizer.special_ids, *ends, vocab_size})
        wrapper = library.TokenizerWrapper(self)
        self._last: tuple[Constraint, Matcher] | None = None
        self._tree = library.LLTokenizer(wrapper, n_vocab=vocab_size + 1, eos_token=ends or [vocab_size])

    def __call__(self, text: str | bytes) -> list[int]:
        """How the model's tokenizer writes a text that a grammar leaves no choice about."""
        if isinstance(text, bytes):
            raise TypeError("text, please")  # the library asks once whether bytes will do
        try:
            with self._lock:
                ids = self._tokenizer.encode(text, add_special=False)
        except GenerationError:
            ids = []
        if b"".join(self.tokens[token] for token in ids) == text.encode():
            return ids
        return self._tree.greedy_tokenize(text)  # SentencePiece begins a text with a space of its own

    def matcher(self, constraint: Constraint) -> Matcher:
        """What follows an answer from its start. GenerationError where the grammar does not fit the vocabulary."""
        last = self._last
        if last is None or last[0] != constraint:
            library = _library()
            made = library.LLMatcher(self._tree, constraint.grammar(), log_level=0, limits=_limits(library))
            last = self._last = constraint, Matcher(made, self.size, constraint.title)
        return last[1].copy()


class Matcher:
    """Follows one answer: which tokens may be next, and whether it can go on."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int, title: str) -> None:
        self._matcher, self._size, self._title = matcher, vocab_size, title
        self._check()

    def copy(self) -> Matcher:
        """Another one at the same place."""
        return Matcher(self._matcher.deep_copy(), self._size, self._title)

    @property
    def over(self) -> bool:
        """True where the answer is whole and nothing may follow."""
        return self._matcher.is_stopped()

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may be next, [vocab]; ends of text where the answer may end. GenerationError for none, and for a
        step that would take the library too long.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        mask = np.unpackbits(bits, count=self._size, bitorder="little").astype(bool)
        if not mask.any():
            raise GenerationError(f"{self._title} allows none of the model's tokens here")
        return mask

    def masked(self, logits: np.ndarray) -> np.ndarray:
        """Logits [vocab], -infinity where a token may not be next."""
        return np.where(self.allowed(), logits, np.asarray(-np.inf, logits.dtype))

    def take(self, token: int) -> None:
        """A token that `allowed` had has been drawn."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GenerationError(f"{self._title} cannot be followed further: {_line(self._matcher.get_error())}")


def _library() -> Any:
    try:
        import llguidance
    except ModuleNotFoundError as error:
        raise GenerationError("answers of a given form need llguidance: pip install 'spqt-ti[constrained]'") from error
    return llguidance


def _limits(library: Any) -> Any:
    # The library's own limits, without its state in messages: schemas may be somebody's secret.
    return library.LLParserLimits(verbose_errors=False)


def _check_numbers(schema: str) -> None:
    """Refuse numbers that end the process: llguidance 1.9 recurses without end on -2^63."""
    try:
        waiting = [bounded_json.parse(schema)]
    except bounded_json.JsonError as error:
        raise GenerationError(f"the JSON schema is no JSON: {error}") from error
    while waiting:
        part = waiting.pop()
        if isinstance(part, int | float) and not abs(part) < _LARGEST:
            raise GenerationError(f"the JSON schema has the number {part}; those from -2^62 to 2^62 can be followed")
        waiting += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()


def _dumped(schema: Any) -> str:
    try:
        return json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise GenerationError(f"the JSON schema is no JSON object: {error}") from error


def _line(message: str) -> str:
    return " ".join(message.split())[:500]
