"""Results of a sweep on disk, so that it goes on where it was interrupted. JSON: Python writes an f64 so that reading
gives the same bits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from spqt_ti.atomic import written_whole
from spqt_ti.bounded_json import JsonError, read_object
from spqt_ti.errors import ExecutionError
from spqt_ti.parallel.study import F64Array, Request

FORMAT = 1


def load(path: Path, request: Request) -> dict[str, F64Array]:
    """Item's key -> result; empty where there is no file. ExecutionError for a file of another request or damage."""
    if not path.exists():
        return {}
    try:
        fields = read_object(path)
        if fields["format"] != FORMAT:
            raise JsonError(f"format {fields['format']!r}")
        found = {str(key): np.array([_number(v) for v in values]) for key, values in fields["results"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExecutionError(f"{path}: not results of a sweep ({error}); delete it to start again") from error
    if fields.get("request") != request.key:
        raise ExecutionError(
            f"{path}: results of another model, text or setting; delete it, or keep them in another folder"
        )
    return found


def save(path: Path, request: Request, results: Mapping[str, F64Array]) -> None:
    """Replace the file, whole or not at all. ExecutionError where that is impossible."""
    fields = {
        "format": FORMAT, "study": request.study, "request": request.key,
        "results": {key: [float(v) for v in values] for key, values in results.items()},
    }  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(fields, allow_nan=False), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ExecutionError(f"{path}: cannot be written: {error}") from error


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is no number")
    return float(value)
