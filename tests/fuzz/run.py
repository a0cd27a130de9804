"""Feeds mutated files to the readers: `python tests/fuzz/run.py [READER ...] [--inputs N] [--seconds S]`.

Prints a table: reader, inputs, how many were refused and accepted, seconds, findings, peak memory. A finding is
anything that is raised and is no SpqtError, an input that takes more than a second, or one that takes more than 200 MB.
Inputs come from `--seed` and their number alone: `--only N` runs one again, with its traceback.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from spqt_ti.errors import SpqtError  # noqa: E402 (the tree that this file is in, not an installed copy)

READERS = (
    "gguf", "safetensors", "tokenizer", "template", "config", "policy", "tuning", "calibration", "container", "texts",
)  # fmt: skip
MOST_SECONDS = 1.0
MOST_MEGABYTES = 200.0

Feed = Callable[[random.Random], None]


@dataclasses.dataclass
class Report:
    """What became of the inputs of one reader; `findings` are (number of the input, what happened)."""

    reader: str
    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    megabytes: float = 0.0
    findings: list[tuple[int, str]] = dataclasses.field(default_factory=list)

    def row(self) -> str:
        """A line of the table."""
        return (
            f"{self.reader:12} {self.inputs:9,} {self.refused:9,} {self.accepted:9,} {self.seconds:9.1f} "
            f"{self.slowest:8.2f} {len(self.findings):8} {self.megabytes:8.0f}"
        )


COLUMNS = ("inputs", 9), ("refused", 9), ("accepted", 9), ("seconds", 9), ("slowest", 8), ("findings", 8), ("MB", 8)
HEAD = f"{'reader':12} " + " ".join(f"{name:>{width}}" for name, width in COLUMNS)


def prepare(reader: str, folder: Path) -> Feed:
    """The function that makes and reads one input of a reader; it keeps its files in `folder`."""
    os.environ["SPQT_CACHE_DIR"] = str(folder / "cache")
    feed: Feed = importlib.import_module(f"fuzz.readers.{reader}").prepare(folder)
    return feed


def fuzz(reader: str, inputs: int, seconds: float, seed: int = 0, numbers: range | None = None) -> Report:
    """Feed inputs until there were `inputs` or `seconds` have passed."""
    report = Report(reader)
    with tempfile.TemporaryDirectory(prefix="spqt-fuzz-") as folder:
        feed = prepare(reader, Path(folder))
        start, before = time.perf_counter(), _peak()
        for number in numbers or range(inputs):
            if time.perf_counter() - start > seconds:
                break
            _one(feed, reader, seed, number, report)
        report.seconds, report.megabytes = time.perf_counter() - start, _peak() - before
    return report


def _one(feed: Feed, reader: str, seed: int, number: int, report: Report) -> None:
    start, memory = time.process_time(), _peak()
    try:
        feed(random.Random(f"{seed} {reader} {number}"))
        report.accepted += 1
    except SpqtError:
        report.refused += 1
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        report.findings.append((number, f"{type(error).__name__}: {error!s:.100} ({place.filename}:{place.lineno})"))
    took, grown = time.process_time() - start, _peak() - memory
    report.inputs += 1
    report.slowest = max(report.slowest, took)
    if took > MOST_SECONDS:
        report.findings.append((number, f"{took:.1f} s"))
    if grown > MOST_MEGABYTES:
        report.findings.append((number, f"{grown:.0f} MB"))


def _peak() -> float:
    """The most memory that this process ever had, in megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> int:
    """The command; the exit code is 1 where there are findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(READERS)} (default: all)")
    parser.add_argument("--inputs", type=int, default=10_000, help="per reader (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="per reader, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="feed one input, without catching what it raises")
    arguments = parser.parse_args()
    readers = arguments.readers or READERS
    if arguments.only is not None:
        for reader in readers:
            with tempfile.TemporaryDirectory(prefix="spqt-fuzz-") as folder:
                prepare(reader, Path(folder))(random.Random(f"{arguments.seed} {reader} {arguments.only}"))
        return 0
    print(HEAD)
    reports = []
    for reader in readers:
        reports.append(fuzz(reader, arguments.inputs, arguments.seconds, arguments.seed))
        print(reports[-1].row(), flush=True)
    for report in reports:
        for number, what in report.findings[:20]:
            print(f"{report.reader} --only {number}: {what}")
    return int(any(report.findings for report in reports))


if __name__ == "__main__":
    sys.exit(main())
