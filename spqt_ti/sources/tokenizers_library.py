"""What the `tokenizers` library raises, as an error of this package: it raises plain Exception, and PyO3's
PanicException, which is no Exception at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from spqt_ti.errors import SpqtError


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
