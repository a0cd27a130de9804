"""Feeds mutated files to the readers: `python tests/fuzz/run.py [READER ...] [--inputs N] [--seconds S]`.

Prints a table: reader, inputs, how many were refused and accepted, seconds, findings, peak memory. A finding is
anything that is raised and is no SpqtError, an input that takes more than a second or 200 MB, or a message that should
not be printed.

    python tests/fuzz/run.py --state FOLDER --seconds 7200      # long: readers in turn, one process at a time
    python tests/fuzz/run.py gguf --replay FOLDER/gguf/findings/0123456789abcdef

With --state inputs that reach new blocks of the package are kept and changed further, and the next run with that folder
goes on where the last one ended, however it ended.
"""

from __future__ import annotations

import argparse
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuzz.loop import Report

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
os.environ["RUST_BACKTRACE"] = "0"  # a panic of the tokenizers library would take milliseconds to write one

READERS = (
    "gguf", "gguf_model", "safetensors", "tokenizer", "template", "config", "policy", "tuning", "calibration",
    "checkpoint", "container", "texts", "plan", "predictors", "curve", "finished_layers", "packed", "hub", "server",
    "sweep",
)  # fmt: skip
_SLICE = 300.0  # seconds that a reader gets at a time: its start takes some
_LAST_BYTES = 1 << 20
_MOST_BYTES = 4 << 30  # of a slice's process: an input that wants more ends it, and not the machine
_LATE = 900.0  # seconds after which a turn is ended from outside: on a busy machine a start takes minutes
_MOST_CPU_SECONDS = 20.0  # after which an input is ended that nothing else can interrupt


def fuzz(reader: str, inputs: int, seconds: float, seed: int = 0) -> Report:
    """Feed a reader in this process, without feedback: the same inputs each time."""
    from fuzz.loop import Report, feed, prepare

    report = Report(reader)
    with tempfile.TemporaryDirectory(prefix="spqt-fuzz-", dir=_memory()) as folder:
        feed(prepare(reader, Path(folder)), report, inputs, seconds, seed)
    return report


def slice_of(reader: str, state_folder: Path, inputs: int, seconds: float, seed: int) -> None:
    """Go on with a reader, with feedback; everything is kept in the state's folder."""
    from fuzz import coverage

    coverage.install()
    from fuzz.loop import State, feed, prepare

    state = State(state_folder, reader)
    report = state.load()
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # panics of the tokenizers library are written there
    with tempfile.TemporaryDirectory(prefix="spqt-fuzz-", dir=_memory()) as folder, _Last(state.last) as last:
        feed(prepare(reader, Path(folder)), report, inputs, seconds, seed, coverage.Seen().grew, last.note)
    state.save(report)


class _Last:
    """The input that is read now, in a mapped file: it is there even if the process is killed."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(_LAST_BYTES))
        self._file = open(path, "r+b")  # noqa: SIM115
        self._map = mmap.mmap(self._file.fileno(), _LAST_BYTES)

    def __enter__(self) -> _Last:
        return self

    def __exit__(self, *unused: object) -> None:
        self._map.close()
        self._file.close()

    def note(self, data: bytes) -> None:
        size = min(len(data), _LAST_BYTES - 8)
        self._map[: 8 + size] = size.to_bytes(8, "little") + data[:size]
        signal.setitimer(signal.ITIMER_PROF, _MOST_CPU_SECONDS)


def _long(readers: list[str], state_folder: Path, inputs: int, seconds: float, seed: int) -> bool:
    """Readers in turn, a process for each turn; whether nothing was found."""
    from fuzz.loop import HEAD, State

    begun = time.perf_counter()
    while True:
        waiting = [reader for reader in readers if State(state_folder, reader).load().inputs < inputs]
        for reader in waiting:
            left = min(_SLICE, seconds - (time.perf_counter() - begun))
            if left <= 0:
                waiting = []
                break
            _turn(reader, state_folder, inputs, left, seed)
        if not waiting or time.perf_counter() - begun >= seconds:
            break
    reports = [State(state_folder, reader).load() for reader in readers]
    print(HEAD)
    for report in reports:
        print(report.row())
    for report in reports:
        for what in report.findings:
            print(f"{report.reader}: {what}")
    return not any(report.findings for report in reports)


def _turn(reader: str, state_folder: Path, inputs: int, seconds: float, seed: int) -> None:
    from fuzz.loop import State

    state = State(state_folder, reader)
    more = inputs - state.load().inputs
    command = [sys.executable, __file__, reader, "--slice", "--state", str(state_folder)]
    command += ["--inputs", str(more), "--seconds", str(seconds), "--seed", str(seed)]
    try:
        ended = subprocess.run(command, timeout=seconds + _LATE).returncode
    except subprocess.TimeoutExpired:
        state.died("hangs")
        return
    if ended == -signal.SIGINT:
        raise KeyboardInterrupt
    if ended:
        state.died(f"the process ends with {ended}")


def _memory() -> str | None:
    """A folder in memory, where there is one: files are written for every input."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main() -> int:
    """The command; the exit code is 1 where there are findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(READERS)} (default: all)")
    parser.add_argument("--inputs", type=int, help="per reader (default: 10,000; with --state 10 million)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="per reader; with --state in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, metavar="FOLDER", help="keep everything there, and go on from it")
    parser.add_argument("--slice", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--replay", type=Path, metavar="FILE", help="read one input, without catching what is raised")
    arguments = parser.parse_args()
    readers = arguments.readers or list(READERS)
    inputs = arguments.inputs or (10_000_000 if arguments.state else 10_000)
    if arguments.replay:
        from fuzz.loop import prepare

        with tempfile.TemporaryDirectory(prefix="spqt-fuzz-") as folder:
            prepare(readers[0], Path(folder)).read(arguments.replay.read_bytes())
        return 0
    if arguments.slice:
        slice_of(readers[0], arguments.state, inputs, arguments.seconds, arguments.seed)
        return 0
    if arguments.state:
        return int(not _long(readers, arguments.state, inputs, arguments.seconds, arguments.seed))
    return _short(readers, inputs, arguments.seconds, arguments.seed)


def _short(readers: list[str], inputs: int, seconds: float, seed: int) -> int:
    from fuzz.loop import HEAD

    print(HEAD)
    reports = []
    for reader in readers:
        reports.append(fuzz(reader, inputs, seconds, seed))
        print(reports[-1].row(), flush=True)
    for report in reports:
        for what in report.findings:
            print(f"{report.reader}: {what}")
    return int(any(report.findings for report in reports))


if __name__ == "__main__":
    sys.exit(main())
