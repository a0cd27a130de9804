"""This checkout beside another one: decoding, a prompt and the zigzag GEMV, interleaved in one run.

    git worktree add ../before v0.1.0 && python bench/two_trees.py ../before smollm2-135m

Each tree runs in a process of its own, which waits while the other measures. A round is one measurement of everything
in both trees, the order of the trees alternating. The table has medians over rounds and the median of the rounds'
ratios: above 1 this checkout is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from spqt_ti.benchmark.provenance import provenance
from spqt_ti.benchmark.shapes import parse_shapes
from spqt_ti.tables import Table, print_table

SHAPES = "4096x4096,1024x4096,14336x4096,4096x14336"  # Llama-3-8B's

# Runs in either tree, so it uses what both have. Answers a line with the seconds of every case.
WORKER = """
import json, sys, time
import spqt_ti
from spqt_ti.benchmark.gemv_drivers import Zigzag
model_name, threads, tokens, length, shapes = json.loads(sys.argv[1])
cases = {}
for name, level in (("decode, dense", 0.0), ("decode, 50 %", 0.5)):
    model = spqt_ti.load(model_name, sparsity=level, threads=threads)
    def decode(model=model):
        llama = model.llama
        llama.reset()
        token = llama.prefill(model.tokenizer.encode("Once upon a time there was"))[-1].argmax()
        start = time.perf_counter()
        for _ in range(tokens // 16):
            token = llama.decode_greedy(int(token), 16)[-1]
        return (time.perf_counter() - start) / tokens
    cases[name] = decode
def prompt(model=model):
    ids = model.tokenizer.encode("Once upon a time there was a small settlement on the bank of the river. ")
    model.llama.reset()
    start = time.perf_counter()
    model.llama.prefill((ids * length)[:length])
    return time.perf_counter() - start
cases[f"prompt of {length}"] = prompt
for rows, cols in shapes:
    driver = Zigzag(rows, cols, threads)
    for name, kernel, density in (("dense", "zigzag", 1.0), ("50 %", "full", 0.5)):
        def product(driver=driver, kernel=kernel, density=density):
            start = time.perf_counter()
            driver.run(kernel, density)
            return (time.perf_counter() - start) / driver.turns
        cases[f"GEMV {rows}x{cols}, {name}"] = product
for case in cases.values():
    case()
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps({name: case() for name, case in cases.items()}), flush=True)
"""


class Tree:
    """A checkout whose worker runs when it is asked."""

    def __init__(self, folder: Path, arguments: list[object]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        command = [sys.executable, "-c", WORKER, json.dumps(arguments)]
        self._process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def measure(self) -> dict[str, float]:
        """Seconds of every case."""
        assert self._process.stdin is not None
        print("go", file=self._process.stdin, flush=True)
        seconds: dict[str, float] = json.loads(self._answer())
        return seconds

    def close(self) -> None:
        """Let the process end."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker ended with code {self._process.wait()}; its own words are above")
        return line


def table(before: list[dict[str, float]], after: list[dict[str, float]]) -> Table:
    """A row per case."""
    rows = []
    for name in after[0]:
        old, new = (np.array([seconds[name] for seconds in runs]) for runs in (before, after))
        ratios = old / new
        low, high = np.quantile(ratios, (0.2, 0.8))
        times = [f"{np.median(runs) * 1e3:.3f}" for runs in (old, new)]
        rows.append([name, *times, f"{np.median(ratios):.3f}", f"{low:.3f} to {high:.3f}"])
    return Table(["", "before, ms", "this checkout, ms", "before over this", "p20 to p80"], rows)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="another checkout of this repository")
    parser.add_argument("model", help="known name or .gguf file, which each tree quantises for itself")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shapes", default=SHAPES, help="of the GEMV; empty: none (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="decoded per round, a multiple of 16")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt (default: %(default)s)")
    arguments = parser.parse_args()
    shapes = parse_shapes(arguments.shapes) if arguments.shapes else []
    settings: list[object] = [arguments.model, arguments.threads, arguments.tokens, arguments.prompt, shapes]
    here = Path(__file__).resolve().parents[1]
    trees = [Tree(arguments.before.resolve(), settings), Tree(here, settings)]
    runs: list[list[dict[str, float]]] = [[], []]
    for number in range(arguments.rounds):
        for i in (0, 1) if number % 2 == 0 else (1, 0):
            runs[i].append(trees[i].measure())
    for tree in trees:
        tree.close()
    print_table(
        table(*runs), f"medians of {arguments.rounds} rounds, weights of GEMVs from memory",
        provenance(arguments.threads),
    )  # fmt: skip


if __name__ == "__main__":
    main()
