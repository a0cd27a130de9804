"""Endurance: many tokens and loads in one process, and kills at random moments of quantise, calibrate and generate.

    python bench/soak.py                               # 10,000 tokens, 200 loads, 100 kills: an hour on two cores
    python bench/soak.py --tokens 2000 --loads 20 --kills 0

Memory, descriptors and threads have to stay flat, repeats bit-identical; after a kill the next run has to work and to
leave nothing behind but what a run without a kill leaves. Linux only. Exit code 1 where something does not hold.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PROMPT = "hello"
GENERATE = ["--raw", "--sparsity", "0.4", "--max-new-tokens", "8", "--threads", "1", "--context", "128", "--json"]
TEMPORARY = re.compile(r"\.partial-|ticache\.lock$|\.\d+-\d+$")  # names of what is not finished
MOST_GROWTH = 8 << 20  # bytes of memory between the first fifth and the end


@dataclass(frozen=True)
class Usage:
    """What a process has: resident memory in bytes, open descriptors, threads."""

    memory: int
    descriptors: int
    threads: int

    @classmethod
    def now(cls) -> Usage:
        """Of this process."""
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        memory, threads = int(fields["VmRSS"].split()[0]) * 1024, int(fields["Threads"])
        return cls(memory, len(os.listdir("/proc/self/fd")), threads)

    def __str__(self) -> str:
        return f"{self.memory / 1e6:.1f} MB, {self.descriptors} descriptors, {self.threads} threads"


class Soak:
    """What was found to be wrong, and the report."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def check(self, right: bool, what: str) -> None:
        """Note `what` unless it is right."""
        if not right:
            self.wrong.append(what)
            print(f"WRONG: {what}", flush=True)

    def flat(self, name: str, first: Usage, last: Usage) -> None:
        """Report usage at a fifth and at the end of a part, which have to be the same."""
        print(f"{name}: {first} at a fifth; {last} at the end", flush=True)
        self.check(last.memory - first.memory < MOST_GROWTH, f"{name}: memory grows")
        self.check(last.descriptors <= first.descriptors, f"{name}: descriptors grow")
        self.check(last.threads <= first.threads, f"{name}: threads grow")


def tokens(soak: Soak, source: Path, wanted: int) -> None:
    """Generate again and again with one model, greedily and drawn."""
    import spqt_ti

    model = spqt_ti.load(source, sparsity=0.4, threads=1, context=256)
    ways = ({}, {"temperature": 0.9, "seed": 3})
    expected = [model.generate(PROMPT, max_new_tokens=100, **way).token_ids for way in ways]
    made, first = 0, None
    while made < wanted:
        for way, right in zip(ways, expected, strict=True):
            got = model.generate(PROMPT, max_new_tokens=100, **way).token_ids
            soak.check(got == right, f"after {made} tokens a text is another")
            made += len(got)
        if first is None and made >= wanted // 5:
            first = Usage.now()
    soak.flat(f"{made} tokens", first or Usage.now(), Usage.now())


def loads(soak: Soak, source: Path, wanted: int) -> None:
    """Load again and again; every model gives the same logits. Every fourth stream is left half-way."""
    import spqt_ti

    expected, first = None, None
    for number in range(wanted):
        model = spqt_ti.load(source, threads=1, context=128)
        logits = model.logits([5, 17, 42], mode="decode").tobytes()
        expected = expected or logits
        soak.check(logits == expected, f"load {number} gives other logits")
        if number % 4 == 0:
            next(model.stream(PROMPT))
        del model
        if number == wanted // 5:
            first = Usage.now()
    soak.flat(f"{wanted} loads", first or Usage.now(), Usage.now())


def kills(soak: Soak, source: Path, wanted: int, seed: int) -> None:
    """Kill a run that quantises, calibrates and generates at a random moment; then run it to its end."""
    cache = Path(os.environ["SPQT_CACHE_DIR"])
    moments = random.Random(seed)

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "spqt_ti", "generate", str(source), PROMPT, *GENERATE]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

    def finish() -> list[str]:
        run = start()
        out, err = run.communicate(timeout=600)
        soak.check(run.returncode == 0, f"a run ends with {run.returncode}: {err.decode()[-300:]}")
        return [line for line in out.decode().splitlines() if "seconds" not in line]

    shutil.rmtree(cache / "quantized", ignore_errors=True)
    finish()  # compiles
    shutil.rmtree(cache / "quantized", ignore_errors=True)
    begun = time.perf_counter()
    expected = _texts(finish())
    length, kept = time.perf_counter() - begun, _names(cache)
    for number in range(wanted):
        shutil.rmtree(cache / "quantized", ignore_errors=True)
        run = start()
        moment = moments.uniform(0, length)
        time.sleep(moment)
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        soak.check(_texts(finish()) == expected, f"kill {number} at {moment:.2f} s: the next text is another")
        left = [name for name in _names(cache) - kept if TEMPORARY.search(name)]
        soak.check(not left, f"kill {number} at {moment:.2f} s leaves {', '.join(left)}")
    print(f"{wanted} kills within {length:.1f} s: {len(soak.wrong)} findings", flush=True)


def _texts(lines: list[str]) -> list[str]:
    """What does not depend on time."""
    return [line for line in lines if "per_second" not in line]


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def main() -> None:
    """Run the parts that are asked for on a tiny random model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 10_000), ("loads", 200), ("kills", 100), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    soak = Soak()
    with tempfile.TemporaryDirectory(prefix="spqt-soak-") as folder:
        os.environ["SPQT_CACHE_DIR"] = str(Path(folder) / "cache")
        source = Path(folder) / "tiny.gguf"
        sizes = "--hidden 256 --intermediate 512 --layers 1 --heads 4 --kv-heads 2 --vocabulary 320"
        maker = [sys.executable, str(Path(__file__).with_name("random_llama.py")), str(source), *sizes.split()]
        subprocess.run(maker, check=True, stdout=subprocess.DEVNULL)
        if arguments.kills:
            kills(soak, source, arguments.kills, arguments.seed)
        if arguments.tokens:
            tokens(soak, source, arguments.tokens)
        if arguments.loads:
            loads(soak, source, arguments.loads)
    sys.exit(1 if soak.wrong else 0)


if __name__ == "__main__":
    main()
