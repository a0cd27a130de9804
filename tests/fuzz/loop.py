"""Feeds one reader with inputs, and keeps what it finds: counts, findings and inputs that reached something new."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import logging
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz.target import Target

from spqt_ti.errors import SpqtError

MOST_SECONDS = 1.0
MOST_MEGABYTES = 200.0
_LONGEST_MESSAGE = 2000
_LARGEST_KEPT = 1 << 16  # bytes of an input that others are made from
_MOST_FINDINGS = 100  # of one kind nobody needs more


@dataclasses.dataclass
class Report:
    """What became of the inputs of one reader so far. `findings`: what happened -> the input that showed it first."""

    reader: str
    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    megabytes: float = 0.0
    findings: dict[str, bytes] = dataclasses.field(default_factory=dict)
    corpus: list[bytes] = dataclasses.field(default_factory=list)

    def row(self) -> str:
        """A line of the table."""
        rate = self.inputs / self.seconds if self.seconds else 0.0
        return (
            f"{self.reader:12} {self.inputs:11,} {self.refused:11,} {self.accepted:10,} {self.seconds:8.0f} "
            f"{rate:9,.0f} {self.slowest:8.2f} {len(self.findings):8} {self.megabytes:6.0f} {len(self.corpus):7}"
        )


COLUMNS = (
    ("inputs", 11), ("refused", 11), ("accepted", 10), ("seconds", 8), ("inputs/s", 9), ("slowest", 8), ("findings", 8),
    ("MB", 6), ("corpus", 7),
)  # fmt: skip
HEAD = f"{'reader':12} " + " ".join(f"{name:>{width}}" for name, width in COLUMNS)


def prepare(reader: str, folder: Path) -> Target:
    """The target of a reader; it keeps its files in `folder`."""
    os.environ["SPQT_CACHE_DIR"] = str(folder / "cache")
    target: Target = importlib.import_module(f"fuzz.readers.{reader}").prepare(folder)
    return target


def feed(
    target: Target,
    report: Report,
    inputs: int,
    seconds: float,
    seed: int = 0,
    grew: Callable[[], bool] | None = None,
    note: Callable[[bytes], None] = lambda data: None,
) -> None:
    """Feed `inputs` more inputs, or for `seconds`. `grew` says whether the last input reached something new, and is
    then made others from; `note` is called with each input before it is read.
    """
    rng = random.Random(f"{seed} {report.reader} {report.inputs}")
    begun = time.perf_counter()
    with _watched_log() as log:
        parents = [*target.seeds, *report.corpus]
        for data in parents if grew else ():
            note(data)
            _one(target, data, report, log)
        if grew:
            grew()
        for _ in range(inputs):
            if time.perf_counter() - begun > seconds:
                break
            data = target.mutate(_parent(target.seeds, parents, rng), rng)
            note(data)
            _one(target, data, report, log)
            if grew and grew() and len(data) <= _LARGEST_KEPT:
                parents.append(data)
                report.corpus.append(data)
    report.seconds += time.perf_counter() - begun


def _parent(seeds: tuple[bytes, ...], parents: list[bytes], rng: random.Random) -> bytes:
    """A whole input often, because most changed ones are refused early; of the others the last lead on most often."""
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(seeds)
    return rng.choice(parents[-8:] if kind < 0.65 else parents)


def _one(target: Target, data: bytes, report: Report, log: _Log) -> None:
    before, start = _peak(), time.process_time()
    try:
        target.read(data)
        report.accepted += 1
    except SpqtError as error:
        report.refused += 1
        if len(str(error)) > _LONGEST_MESSAGE:
            _found(report, data, f"a message of {len(str(error))} characters", error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _found(report, data, f"{type(error).__name__}: {error!s:.100}", error)
    took, peak = time.process_time() - start, _peak()
    report.inputs += 1
    report.slowest = max(report.slowest, took)
    if took > MOST_SECONDS:
        _found(report, data, f"takes {took:.1f} s")
    if peak > before:
        report.megabytes = max(report.megabytes, peak - before)
        if peak - before > MOST_MEGABYTES:
            _found(report, data, f"takes {peak - before:.0f} MB")
        if peak - before > 8:
            _forget_peak()
    for message in log.wrong:
        _found(report, data, f"logs {message[:80]!r}")
    log.wrong.clear()


def _found(report: Report, data: bytes, what: str, error: BaseException | None = None) -> None:
    if error is not None:
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{what} ({Path(place.filename).name}:{place.lineno})"
    # One of a kind: the place tells kinds apart, the message may hold anything.
    kind = what.rsplit(" (", 1)[-1] if error is not None else what.split(" ")[0]
    if not any(kind in known for known in report.findings) and len(report.findings) < _MOST_FINDINGS:
        report.findings[what] = data


class _Log(logging.Handler):
    """Formats what the package logs, and notes what should not be printed."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if len(message) > _LONGEST_MESSAGE or not message.isprintable():
            self.wrong.append(message)


class _watched_log:  # noqa: N801 (a context manager)
    def __enter__(self) -> _Log:
        self.package, self.handler = logging.getLogger("spqt_ti"), _Log()
        self.before = self.package.handlers, self.package.propagate
        self.package.handlers, self.package.propagate = [self.handler], False
        return self.handler

    def __exit__(self, *unused: object) -> None:
        self.package.handlers, self.package.propagate = self.before


def _peak() -> float:
    """The most memory that this process ever had, in megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def _forget_peak() -> None:
    """Count the peak from what there is now, where the system can: one large input hides others otherwise."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


class State:
    """What is known of a reader, in a folder: it survives the process, and is gone on with."""

    def __init__(self, folder: Path, reader: str) -> None:
        self.folder, self.reader = folder / reader, reader
        self.last = self.folder / "last-input"
        for name in ("corpus", "findings"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def load(self) -> Report:
        """The report of all runs so far."""
        report = Report(self.reader)
        counts = self.folder / "counts.json"
        if counts.is_file():
            report = Report(self.reader, **json.loads(counts.read_text()))
        report.corpus = [path.read_bytes() for path in sorted((self.folder / "corpus").iterdir())]
        report.findings = dict(self._findings())
        return report

    def save(self, report: Report) -> None:
        """Keep it; files that are there already are left alone."""
        for data in report.corpus:
            self._keep("corpus", data)
        for what, data in report.findings.items():
            path = self._keep("findings", data)
            path.with_suffix(".txt").write_text(what)
        counts = {
            name: getattr(report, name) for name in ("inputs", "refused", "accepted", "seconds", "slowest", "megabytes")
        }
        (self.folder / "counts.json").write_text(json.dumps(counts))

    def died(self, how: str) -> None:
        """Note the input at which a process ended that should not have."""
        report, data = self.load(), self.last.read_bytes() if self.last.exists() else b""
        size = int.from_bytes(data[:8], "little")
        report.findings.setdefault(how, data[8 : 8 + size])
        report.inputs += 1  # so that the next turn makes other inputs
        self.save(report)

    def _keep(self, where: str, data: bytes) -> Path:
        path = self.folder / where / hashlib.sha256(data).hexdigest()[:16]
        if not path.exists():
            path.write_bytes(data)
        return path

    def _findings(self) -> Iterator[tuple[str, bytes]]:
        for path in sorted((self.folder / "findings").glob("*.txt")):
            yield path.read_text(), path.with_suffix("").read_bytes()
