"""bench/gpu.py from end to end on small shapes, and which targets count as missed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny_containers

from spqt_ti.benchmark.gpu import GpuGemvRow, missed_targets

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.py"


@pytest.mark.threadgroups
def test_the_tables(backend_name: str) -> None:
    model = str(tiny_containers.container("gqa").path)
    small = [
        "--shapes",
        "300x64",
        "--density",
        "0.5",
        "--rounds",
        "2",
        "--cold-megabytes",
        "1",
        "--copy-megabytes",
        "4",
    ]
    command = [sys.executable, str(SCRIPT), "--backend", backend_name, "--model", model, "--sparsity", "0,0.5", *small]
    done = subprocess.run([*command, "--tokens", "17"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{backend_name}: ")
    gemvs = [line.split(" | ") for line in lines if line.startswith("| 300 | 64 ")]
    assert [row[2] for row in gemvs] == ["row", "zigzag", "b1", "b2", "full"]
    assert all(float(row[4]) > 0 and float(row[6]) > 0 for row in gemvs)  # device and wall time
    decoded = [line.split(" | ") for line in lines if line.startswith(f"| {model}")]
    assert [float(row[1]) for row in decoded] == [0, 0.5]
    assert float(decoded[0][2]) == 0 < float(decoded[1][2]) < 1
    assert any(line.startswith("copy bandwidth") for line in lines)


def row(rows: int, cols: int, kernel: str, density: float, fraction: float, speedup: float) -> GpuGemvRow:
    return GpuGemvRow(rows, cols, kernel, density, 1.0, 0.0, 1.0, 1.0, fraction, speedup, 1.0)


def test_missed_targets() -> None:
    rows = [
        row(4096, 14336, "zigzag", 1.0, 0.3, 1.0),  # too small to count
        row(4096, 28672, "zigzag", 1.0, 0.69, 1.0),
        row(4096, 28672, "full", 0.5, 0.9, 1.59),
        row(4096, 28672, "full", 0.75, 0.9, 1.0),
        row(4096, 4096, "full", 0.75, 0.1, 0.99),
        row(2048, 4096, "full", 0.75, 0.1, 0.5),  # too small to count
        row(4096, 28672, "b2", 0.5, 0.1, 0.5),  # a baseline
    ]
    assert [line.split(":")[0] for line in missed_targets(rows)] == [
        "4096x28672 zigzag 100%",
        "4096x28672 full 50%",
        "4096x4096 full 75%",
    ]
