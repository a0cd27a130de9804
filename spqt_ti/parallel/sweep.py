"""All items of a request, with progress, and kept on disk as they come: interrupted, a sweep goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from spqt_ti.parallel import results
from spqt_ti.parallel.executors import Executor
from spqt_ti.parallel.study import F64Array, Item, Request, key_of
from spqt_ti.progress import progress

SAVE_SECONDS = 5.0


def sweep(
    executor: Executor, request: Request, items: Sequence[Item], kept: Path | None = None, title: str = "sweep"
) -> list[F64Array]:
    """The items' results, in their order. `kept`: file for what is done (None: nowhere); items that it has are not
    evaluated again.

    Raises ExecutionError, whatever the study raises, and KeyboardInterrupt; what is done is in the file by then.
    """
    found = {} if kept is None else results.load(kept, request)
    keys = [key_of(item) for item in items]
    todo = {key: item for key, item in zip(keys, items, strict=True) if key not in found}
    names = list(todo)
    saved = time.monotonic()
    try:
        with progress(total=len(set(keys)), initial=len(set(keys)) - len(todo), desc=title, unit="items") as bar:
            for index, result in executor.run(request, list(todo.values())) if todo else ():
                found[names[index]] = result
                bar.update()
                if kept is not None and time.monotonic() - saved >= SAVE_SECONDS:
                    results.save(kept, request, found)
                    saved = time.monotonic()
    finally:
        if kept is not None and todo:
            results.save(kept, request, found)
    return [found[key] for key in keys]
