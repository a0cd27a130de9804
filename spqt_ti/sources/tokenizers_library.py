"""The `tokenizers` library with strangers' files: what it would not survive is refused before, and what it raises
becomes an error of this package. It raises plain Exception, and PyO3's PanicException, which is no Exception at all.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from spqt_ti.errors import CheckpointError, SpqtError
from spqt_ti.sources.regex_cost import PatternCosts

_MOST_IDS = 1 << 22  # the library counts from 0 to the largest id, and keeps a list of those that are missing
_MOST_ADDED = 1 << 21  # characters of all added tokens: speech models have 30 000 tokens of 20
_MOST_PUT_IN = 1000  # tokens that a post-processor puts around a text, and times that it repeats the text
_MOST_GROWTH = 256  # by which normalizers and pre-tokenizers, one after the other, may lengthen a text


@contextlib.contextmanager
def library_errors(kind: type[SpqtError], what: str) -> Iterator[None]:
    """Raise `kind` with `what` in front for whatever the library raises; errors of this package pass through."""
    try:
        yield
    except (SpqtError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise kind(f"{what} ({first[:300]})") from error


def check_bounds(fields: Mapping[str, Any]) -> PatternCosts:
    """CheckpointError for the content of a `tokenizer.json` that would take the library any amount of memory or time,
    or that gives a text other tokens each time; else what its patterns may take, to be asked about each text.
    """
    model, added = fields.get("model"), fields.get("added_tokens")
    model = model if isinstance(model, dict) else {}
    vocabulary = model.get("vocab")
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    entries = [entry for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    ids += [entry.get("id") for entry in entries]
    largest = max((i for i in ids if isinstance(i, int)), default=0)
    if largest >= _MOST_IDS:
        raise CheckpointError(f"the tokenizer has a token with the id {largest}, more than {_MOST_IDS}")
    characters = sum(len(content) for entry in entries if isinstance(content := entry.get("content"), str))
    if characters > _MOST_ADDED:
        raise CheckpointError(f"the tokenizer's added tokens have {characters} characters, more than {_MOST_ADDED}")
    growth = _growth(fields.get("normalizer")) * _growth(fields.get("pre_tokenizer"))
    if growth > _MOST_GROWTH:
        raise CheckpointError(f"the tokenizer's normalizers and pre-tokenizers may make a text {growth} times longer")
    put_in = _put_in(fields.get("post_processor"))
    if put_in > _MOST_PUT_IN:
        raise CheckpointError(f"the tokenizer's post-processor puts {put_in} tokens around a text")
    if model.get("dropout"):
        raise CheckpointError(
            f"the tokenizer has a dropout of {model['dropout']!r:.80}, with which it divides a text otherwise "
            "each time; set it to null in the file"
        )
    costs = PatternCosts.of(fields, growth)
    costs.check_added(content for entry in entries if isinstance(content := entry.get("content"), str))
    return costs


def _put_in(processor: Any) -> int:
    """Tokens that a post-processor puts around a text, and how often it repeats the text."""
    if not isinstance(processor, dict):
        return 0
    parts, template, special = (processor.get(name) for name in ("processors", "single", "special_tokens"))
    count = sum(_put_in(part) for part in parts) if isinstance(parts, list) else 0
    sizes = {
        name: max(
            len(listed) for listed in (entry.get("ids"), entry.get("tokens"), ()) if isinstance(listed, list | tuple)
        )
        for name, entry in (special.items() if isinstance(special, dict) else ())
        if isinstance(entry, dict)
    }
    for part in template if isinstance(template, list) else ():
        token = part.get("SpecialToken") if isinstance(part, dict) else None
        name = token.get("id") if isinstance(token, dict) else None
        count += sizes.get(name, 1) if isinstance(name, str) else 1
    return count


def _growth(step: Any) -> int:
    """How many times more bytes normalizers and pre-tokenizers may make of a text, one after the other."""
    if not isinstance(step, dict):
        return 1
    growth = 1
    for name in ("normalizers", "pretokenizers"):
        parts = step.get(name)
        for part in parts if isinstance(parts, list) else ():
            growth = min(growth * _growth(part), 1 << 62)
    if step.get("type") == "ByteLevel":  # a character beyond ASCII has at least two bytes, each of which becomes one
        growth *= 2
    content, prepended, table = (step.get(name) for name in ("content", "prepend", "precompiled_charsmap"))
    if isinstance(content, str):  # takes a character's place, or stands between any two
        growth *= max(1, 2 * _bytes(content))
    if isinstance(prepended, str):  # to each piece between added tokens
        growth *= 1 + _bytes(prepended)
    return growth * _longest_replacement(table) if isinstance(table, str) else growth


def _bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


def _longest_replacement(table: str) -> int:
    """Bytes that SentencePiece's table of characters puts in one's place: texts that end with NUL, behind a trie."""
    try:
        raw = base64.b64decode(table)
    except ValueError:
        return 1  # which the library refuses
    texts = raw[4 + int.from_bytes(raw[:4], "little") :]
    return max(1, *map(len, texts.split(b"\0")))
