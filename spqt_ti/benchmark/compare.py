"""The same work on several backends: how far results agree, and how long it takes.

A process has one backend, so each runs in a process of its own (`python -m spqt_ti.benchmark.compare`), which leaves
its results in a file. They are compared with those of the first backend.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spqt_ti.api import Model, load, open_quantized
from spqt_ti.backend import BACKENDS, start
from spqt_ti.benchmark.gemv_drivers import stored_bytes
from spqt_ti.children import python_command
from spqt_ti.errors import BackendError, SpqtError
from spqt_ti.kernels import drivers
from spqt_ti.model.engine import MOST_TOKENS
from spqt_ti.progress import progress
from spqt_ti.tables import Table

ROWS, COLS = 960, 576  # of the GEMV: SmolLM2's qkv
DENSITY = 0.5
PROMPT = "The capital of France is Paris, and"
_REPEATS = 5


@dataclass(frozen=True)
class Row:
    """One piece of work on one backend.

    `difference`: largest absolute difference from the first backend's numbers, relative to the largest of those;
    `agree`: how many of `of` choices (highest logits, index sets, leading tokens) are the same; None where there is no
    such thing. `milliseconds`: median, of a call from the host with its transfers, or of a token.
    """

    work: str
    backend: str
    device: str
    difference: float | None
    agree: int | None
    of: int | None
    milliseconds: float


@dataclass(frozen=True)
class _Work:
    """Its results are `numbers`, compared by difference, or `choices`, by equality; `leading`: up to the first that
    differs.
    """

    name: str
    numbers: bool
    choices: bool
    leading: bool = False


_WORKS = (
    _Work(f"GEMV {ROWS}x{COLS}, dense", True, False),
    _Work(f"GEMV {ROWS}x{COLS}, {DENSITY:.0%} of the inputs", True, False),
    _Work(f"collector, {COLS} inputs", False, True),
    _Work("prefill: logits of the prompt", True, True),
    _Work("decode: logits of the prompt", True, True),
    _Work("greedy tokens", False, True, leading=True),
)


def compare(name: str | Path, backends: Sequence[str], tokens: int = 32) -> list[Row]:
    """Rows of every piece of work for each of `backends`, of which the first is the standard.

    Raises BackendError for a backend that is not there or fails, ContainerError and the like for the model.
    """
    for backend in backends:
        if backend not in BACKENDS:
            raise BackendError(f"backend {backend!r} is not available; there are: {', '.join(BACKENDS)}")
    path = open_quantized(name, backends[0]).path
    with tempfile.TemporaryDirectory() as folder:
        answers = [
            _ask(backend, path, tokens, Path(folder) / f"{backend}.npz")
            for backend in progress(backends, desc="compare", unit="backends")
        ]
    rows = []
    for number, work in enumerate(_WORKS):
        standard = answers[0][1][number]
        for backend, (report, results) in zip(backends, answers, strict=True):
            difference, agree, of = _agreement(work, results[number], standard)
            rows.append(
                Row(work.name, backend, report["device"], difference, agree, of, report["milliseconds"][number])
            )  # fmt: skip
    return rows


def table(rows: Sequence[Row]) -> Table:
    """A table for people."""
    lines = []
    for row in rows:
        difference = "" if row.difference is None else f"{row.difference:.1e}"
        same = "" if row.of is None else f"{row.agree} of {row.of}"
        lines.append([row.work, row.backend, difference, same, f"{row.milliseconds:.3g}"])
    return Table(["work", "backend", "largest difference", "same", "ms"], lines)


def devices(rows: Sequence[Row]) -> list[str]:
    """Lines that say what each backend ran on."""
    found = {row.backend: row.device for row in rows}
    return [f"{backend}: {device}" for backend, device in found.items()]


def _ask(backend: str, path: Path, tokens: int, file: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """What a process of its own found: its report, and the results of _WORKS."""
    job = json.dumps({"backend": backend, "path": str(path), "tokens": tokens, "file": str(file)})
    command = python_command("spqt_ti.benchmark.compare", job)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    report = json.loads(lines[-1]) if lines and done.returncode == 0 else {"error": None}
    if "error" in report:
        last = (done.stderr.strip().splitlines() or [f"the process ended with code {done.returncode}"])[-1]
        raise BackendError(report["error"] or f"{backend}: {last}")
    with np.load(file) as results:
        return report, [results[f"arr_{number}"] for number in range(len(_WORKS))]


def _agreement(work: _Work, got: np.ndarray, standard: np.ndarray) -> tuple[float | None, int | None, int | None]:
    difference = agree = of = None
    if work.numbers:
        difference = float(np.abs(got - standard).max() / np.abs(standard).max())
        got, standard = got.argmax(-1), standard.argmax(-1)
    if work.choices and work.leading:
        agree, of = int(np.cumprod(got == standard).sum()), standard.size
    elif work.choices and work.numbers:
        agree, of = int((got == standard).sum()), standard.size
    elif work.choices:
        agree, of = int(np.array_equal(got, standard)), 1
    return difference, agree, of


# The other process ----------------------------------------------------------------------------------------------------


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    runtime = start(job["backend"])
    results, milliseconds = [], []
    for result, seconds in (*_kernels(), *_model(job)):
        results.append(result)
        milliseconds.append(1e3 * seconds)
    np.savez(job["file"], *results)
    return {"device": runtime.device, "milliseconds": milliseconds}


def _kernels() -> list[tuple[np.ndarray, float]]:
    generator = np.random.default_rng(0)
    data, _, _ = stored_bytes(ROWS, COLS, "zigzag", warm=True)
    x = generator.standard_normal(COLS, dtype=np.float32)
    active = np.sort(generator.permutation(COLS)[: int(DENSITY * COLS)]).astype(np.int32)
    gemv, collector = drivers.zigzag_gemv(data, ROWS, COLS), drivers.collector(COLS)
    calls = (lambda: gemv(x, None), lambda: gemv(x, active), lambda: collector(x, 0.6745))
    return [_timed(call) for call in calls]


def _timed(call: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    result, seconds = call(), []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return result, float(np.median(seconds))


def _model(job: dict[str, Any]) -> list[tuple[np.ndarray, float]]:
    model = load(job["path"], backend=job["backend"], exact=True)
    prompt = model.tokenizer.encode(PROMPT)
    model.llama.warm_up_prefill()
    model.llama.warm_up_decode()
    prefilled, prefill_seconds = _once(lambda: model.logits(prompt))
    decoded, decode_seconds = _once(lambda: model.logits(prompt, mode="decode"))
    tokens, greedy_seconds = _once(lambda: _greedy(model, prompt, job["tokens"]))
    return [
        (prefilled, prefill_seconds / len(prompt)),
        (decoded, decode_seconds / len(prompt)),
        (tokens, greedy_seconds / job["tokens"]),
    ]


def _once(call: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    begin = time.perf_counter()
    return call(), time.perf_counter() - begin


def _greedy(model: Model, prompt: Sequence[int], count: int) -> np.ndarray:
    """`count` tokens after the prompt: argmax of prefill, then of decoding."""
    llama = model.llama
    llama.reset()
    tokens = [int(llama.prefill(prompt)[0].argmax())]
    while len(tokens) < count:
        tokens += llama.decode_greedy(tokens[-1], min(MOST_TOKENS, count - len(tokens)))
    return np.array(tokens)


if __name__ == "__main__":
    try:
        print(json.dumps(_answer(json.loads(sys.argv[1]))))
    except SpqtError as error:
        print(json.dumps({"error": str(error)}))
