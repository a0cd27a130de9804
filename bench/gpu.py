"""Tables for a GPU: copy bandwidth, GEMVs by shape and density, decoding. One command, which stops at --minutes.

    python bench/gpu.py --backend cuda > docs/gpu.md

Prints Markdown: the device and versions, the tables, and which targets were missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from spqt_ti.backend import start, ti
from spqt_ti.benchmark import gpu
from spqt_ti.benchmark.shapes import parse_shapes
from spqt_ti.errors import SpqtError
from spqt_ti.kernels.simt.gemv import Split


def main() -> int:
    """Measure and print."""
    arguments = _arguments()
    begin = time.monotonic()
    runtime = start(arguments.backend)
    print(f"{runtime.backend}: {runtime.device}; {ti.__name__} {'.'.join(map(str, ti.__version__))}, ", end="")
    print(f"Python {platform.python_version()}, {_driver()}\n")
    if arguments.model:
        decoded = gpu.measure_decode(arguments.model, arguments.sparsity, arguments.backend, arguments.tokens)
        print(_table([dataclasses.asdict(row) for row in decoded]), end="\n\n", flush=True)
    bandwidth = gpu.copy_bandwidth(arguments.copy_megabytes)
    print(f"copy bandwidth (read + written): {bandwidth / 1e9:.0f} GB/s\n")
    split = Split(*map(int, arguments.split.split("x"))) if arguments.split else None
    rows: list[gpu.GpuGemvRow] = []
    shapes = parse_shapes(arguments.shapes)
    while shapes and time.monotonic() - begin < 60 * arguments.minutes:
        cold = arguments.cold_megabytes * 1_000_000
        rows += gpu.measure_gemv(shapes.pop(0), arguments.density, bandwidth, cold, arguments.rounds, split)
    print(_table([dataclasses.asdict(row) for row in rows]))
    print(
        "\n".join(["", *(f"missed: {line}" for line in gpu.missed_targets(rows)), *(f"no time: {s}" for s in shapes)])
    )
    return 0


def _arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[float]:
        return [float(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--shapes", default="4096x4096,8192x16384,llama-3-8b,llama-2-7b,paper")
    parser.add_argument("--density", type=numbers, default=[0.75, 0.6, 0.5, 0.35])
    parser.add_argument("--split", help="threadgroups per band x simdgroups, such as 32x2 (default: by shape)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold-megabytes", type=int, default=512, help="of all copies of a matrix together")
    parser.add_argument("--copy-megabytes", type=int, default=1024)
    parser.add_argument("--model", default="smollm2-135m", help='to decode; "" for none')
    parser.add_argument("--sparsity", type=numbers, default=[0.0, 0.25, 0.4, 0.5])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--minutes", type=float, default=7, help="after which no shape is begun")
    return parser.parse_args()


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return "driver " + subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "driver unknown (no nvidia-smi)"


def _table(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    lines = ["| " + " | ".join(name.replace("_", " ") for name in rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SpqtError as error:
        sys.exit(f"error: {error}")
