"""cuBLAS f16 GEMVs for comparison, by way of torch, in a process of their own: whatever goes wrong there is a reason,
and ends nothing else. Device time is that of a CUDA graph of all products, between two events.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from spqt_ti.benchmark.shapes import Shape
from spqt_ti.children import python_command

_SECONDS = 120


def measure(shapes: Sequence[Shape], cold_bytes: int, rounds: int) -> tuple[dict[Shape, list[float]], str | None]:
    """Seconds per product, one entry per round, of the shapes that could be measured; and why others could not."""
    job = json.dumps([shapes, cold_bytes, rounds])
    try:
        done = subprocess.run(
            python_command("spqt_ti.benchmark.cublas", job),
            capture_output=True, text=True, timeout=_SECONDS, check=False,
        )  # fmt: skip
        output, last = done.stdout, (done.stderr.strip().splitlines() or ["no message"])[-1]
        reason = f"the process ended with code {done.returncode}: {last}" if done.returncode else None
    except subprocess.TimeoutExpired as error:
        output, reason = _text(error.stdout), f"no more than these within {_SECONDS} s"
    times: dict[Shape, list[float]] = {}
    for line in output.splitlines():
        answer = json.loads(line)
        if "reason" in answer:
            return times, answer["reason"]
        times[tuple(answer["shape"])] = answer["seconds"]
    return times, reason


def _text(output: bytes | str | None) -> str:
    """What a process that was stopped had printed, to the last whole line."""
    text = output.decode() if isinstance(output, bytes) else output or ""
    return text[: text.rfind("\n") + 1]


# The other process ----------------------------------------------------------------------------------------------------


def _answer(shapes: Sequence[Shape], cold_bytes: int, rounds: int) -> None:
    """Print a line of JSON per shape, or one with the reason."""
    try:
        torch: Any = importlib.import_module("torch")
        if not torch.cuda.is_available():
            raise RuntimeError(f"torch {torch.__version__} finds no CUDA")
        for shape in shapes:
            print(json.dumps({"shape": shape, "seconds": _seconds(torch, shape, cold_bytes, rounds)}), flush=True)
    except (ImportError, OSError, RuntimeError) as error:
        print(json.dumps({"reason": " ".join(str(error).split())}))


def _seconds(torch: Any, shape: Shape, cold_bytes: int, rounds: int) -> list[float]:
    copies = max(2, -(-cold_bytes // (2 * shape[0] * shape[1])))
    weights = [torch.randn(tuple(shape), device="cuda", dtype=torch.float16) for _ in range(copies)]
    x, times = torch.randn(shape[1], device="cuda", dtype=torch.float16), []
    y = torch.empty(shape[0], device="cuda", dtype=torch.float16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # cuBLAS makes its workspace before the capture
        torch.mv(weights[0], x, out=y)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for w in weights:
            torch.mv(w, x, out=y)
    for _ in range(rounds + 1):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / 1e3 / copies)
    expected = weights[-1].float() @ x.float()
    if not torch.allclose(y.float(), expected, rtol=0.02, atol=0.02 * float(np.sqrt(shape[1]))):
        raise RuntimeError(f"cuBLAS: wrong product of {shape}")
    return times[1:]


if __name__ == "__main__":
    _answer(*json.loads(sys.argv[1]))
