"""Tables for a GPU: decoding, copy bandwidth, GEMVs by shape and density. One command, which stops at --minutes.

    python bench/gpu.py --backend cuda > docs/gpu.md

Prints Markdown as it goes: the device and versions, the tables, and which targets were missed. What cannot be measured
is a line that says why, and the rest goes on.
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

from spqt_ti.backend import kernel_seconds, look_up, start, ti
from spqt_ti.benchmark import cublas, gpu
from spqt_ti.benchmark.provenance import provenance
from spqt_ti.benchmark.shapes import Shape, parse_shapes
from spqt_ti.errors import SpqtError
from spqt_ti.kernels.simt.division import Division
from spqt_ti.tables import markdown_header, markdown_row

FAILURES = Exception  # Taichi's, a driver's and a compiler's have nothing else in common


def main() -> int:
    """Measure and print."""
    arguments, begin = _arguments(), time.monotonic()
    shapes = parse_shapes(arguments.shapes) if arguments.shapes else []
    if arguments.model and shapes:  # the clock that GEMVs are measured by would slow decoding down
        _decode_elsewhere(60 * arguments.minutes / 2)
    runtime = start(arguments.backend, profiler=bool(shapes) and arguments.events)
    if arguments.model and not shapes:
        _decode(arguments)
        return 0
    print(f"{runtime.backend}: {runtime.device}; {ti.__name__} {'.'.join(map(str, ti.__version__))}, ", end="")
    print(f"Python {platform.python_version()}, {_driver()}; device times: ", end="")
    print("of a graph, from submission to end" if kernel_seconds() is None else "events, summed over tasks", flush=True)
    if shapes:
        _gemvs(arguments, shapes, begin + 60 * arguments.minutes)
    return 0


def _decode_elsewhere(seconds: float) -> None:
    """The decoding part of this command, in a process of its own."""
    try:
        done = subprocess.run([sys.executable, *sys.argv, "--shapes", ""], timeout=seconds, check=False)
        if done.returncode:
            print(f"decoding: not measured: the process ended with code {done.returncode}\n", flush=True)
    except subprocess.TimeoutExpired:
        print(f"\ndecoding: not measured further: {seconds:.0f} s are over\n", flush=True)


def _decode(arguments: argparse.Namespace) -> None:
    try:
        rows = gpu.measure_decode(
            arguments.model, arguments.sparsity, arguments.backend, arguments.tokens, arguments.bisect
        )
        for i, row in enumerate(rows):
            _print_rows([dataclasses.asdict(row)], titles=i == 0)
        print(flush=True)
    except FAILURES as error:
        print(f"decoding: not measured: {_line(error)}\n", flush=True)


def _gemvs(arguments: argparse.Namespace, shapes: Sequence[Shape], end: float) -> None:
    bandwidth = gpu.copy_bandwidth(arguments.copy_megabytes)
    print(f"copy bandwidth (read + written): {bandwidth / 1e9:.0f} GB/s", flush=True)
    cold = arguments.cold_megabytes * 1_000_000
    f16, reason = cublas.measure(shapes, cold, arguments.rounds)
    print(f"cublas f16: {f'not measured: {reason}' if reason else 'a CUDA graph of torch.mv'}\n", flush=True)
    division = Division(*map(int, arguments.division.split("x"))) if arguments.division else None
    rows: list[gpu.GpuGemvRow] = []
    problems = []
    for shape in shapes:
        name = f"{shape[0]}x{shape[1]}"
        if time.monotonic() > end:
            problems.append(f"no time: {name}")
            continue
        try:
            new = gpu.measure_gemv(
                shape, arguments.density, bandwidth, cold, arguments.rounds, division, f16.get(shape), end
            )  # fmt: skip
        except TimeoutError as error:
            problems.append(f"no time: {name}: {error}")
            continue
        except FAILURES as error:
            problems.append(f"failed: {name}: {_line(error)}")
            continue
        _print_rows([dataclasses.asdict(row) for row in new], titles=not rows)
        rows += new
    print(
        "\n".join(
            [
                "",
                provenance(None, look_up(arguments.backend).device),
                *(f"missed: {line}" for line in gpu.missed_targets(rows)),
                *problems,
            ]
        ),
        flush=True,
    )


def _arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[float]:
        return [float(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument(
        "--shapes", default="4096x4096,8192x16384,llama-3-8b,llama-2-7b,paper", help='GEMVs; "" for none'
    )  # fmt: skip
    parser.add_argument("--density", type=numbers, default=[0.75, 0.6, 0.5, 0.35])
    parser.add_argument("--division", help="threadgroups per band x simdgroups, such as 32x2 (default: by shape)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--events", action="store_true", help="time each task by the GPU's events (CUDA), which add 4 us to it"
    )
    parser.add_argument("--cold-megabytes", type=int, default=512, help="of all copies of a matrix together")
    parser.add_argument("--copy-megabytes", type=int, default=1024)
    parser.add_argument("--model", default="smollm2-135m", help='to decode; "" for none')
    parser.add_argument(
        "--bisect", action="store_true", help="thresholds for a model of random weights, by numbers of active inputs"
    )
    parser.add_argument("--sparsity", type=numbers, default=[0.0, 0.25, 0.4, 0.5])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--minutes", type=float, default=7, help="after which nothing more is measured")
    return parser.parse_args()


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, check=True, capture_output=True, text=True, timeout=20)
        return f"driver {done.stdout.split()[0]}"  # a line per GPU
    except (OSError, IndexError, subprocess.SubprocessError):
        return "driver unknown (nvidia-smi does not say)"


def _print_rows(rows: Sequence[dict[str, Any]], titles: bool = True) -> None:
    if titles:
        print(markdown_header([name.replace("_", " ") for name in rows[0]]))
    for row in rows:
        cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()]
        print(markdown_row(cells), flush=True)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SpqtError as error:
        sys.exit(f"error: {error}")
