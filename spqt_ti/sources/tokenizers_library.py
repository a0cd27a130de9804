"""The `tokenizers` library with strangers' files: what it would not survive is refused before, and what it raises
becomes an error of this package. It raises plain Exception, and PyO3's PanicException, which is no Exception at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from spqt_ti.errors import CheckpointError, SpqtError

_MOST_IDS = 1 << 22  # the library counts from 0 to the largest id, and keeps a list of those that are missing
_MOST_GROWTH = 256  # by which normalizers, one after the other, may lengthen a text


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


def check_bounds(fields: Mapping[str, Any]) -> None:
    """CheckpointError for the content of a `tokenizer.json` that would take the library any amount of memory."""
    model, added = fields.get("model"), fields.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [entry.get("id") for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    largest = max((i for i in ids if isinstance(i, int)), default=0)
    if largest >= _MOST_IDS:
        raise CheckpointError(f"the tokenizer has a token with the id {largest}, more than {_MOST_IDS}")
    growth = _growth(fields.get("normalizer"))
    if growth > _MOST_GROWTH:
        raise CheckpointError(f"the tokenizer's normalizers may make a text {growth} times longer")


def _growth(normalizer: Any) -> int:
    """How many times longer a text may become; a character may be replaced, and be between two others."""
    if not isinstance(normalizer, dict):
        return 1
    growth = 1
    parts = normalizer.get("normalizers")
    for part in parts if isinstance(parts, list) else ():
        growth = min(growth * _growth(part), 1 << 62)
    content = normalizer.get("content")
    return growth * max(1, 2 * len(content)) if isinstance(content, str) else growth
