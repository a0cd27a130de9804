"""bench/gpu.py from end to end on small shapes, and which targets count as missed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny_containers

from spqt_ti.benchmark import cublas, gpu
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
    (device,) = (line for line in lines if line.startswith(f"{backend_name}: "))
    assert "; device times: " in device
    gemvs = [line.split(" | ") for line in lines if line.startswith("| 300 | 64 ")]
    assert [row[2] for row in gemvs] == ["row", "zigzag", "b1", "b2", "full"]
    assert all(float(row[4]) > 0 and float(row[6]) > 0 for row in gemvs)  # device and wall time
    decoded = [line.split(" | ") for line in lines if line.startswith(f"| {model}")]
    assert [float(row[1]) for row in decoded] == [0, 0.5]
    assert float(decoded[0][2]) == 0 < float(decoded[1][2]) < 1
    assert any(line.startswith("copy bandwidth") for line in lines)
    assert any(line.startswith("cublas f16: ") for line in lines)


@pytest.mark.threadgroups
def test_what_fails_is_a_line_and_the_rest_goes_on(backend_name: str, tmp_path: Path) -> None:
    small = [
        "--shapes",
        "40x64,64x40",
        "--density",
        "0.5",
        "--rounds",
        "1",
        "--cold-megabytes",
        "1",
        "--copy-megabytes",
        "1",
    ]
    command = [sys.executable, str(SCRIPT), "--backend", backend_name, "--model", str(tmp_path / "absent"), *small]
    done = subprocess.run([*command, "--division", "3x5"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("decoding: not measured: ") and "absent" in line for line in lines)
    assert [line.split(":")[1] for line in lines if line.startswith("failed: ")] == [" 40x64", " 64x40"]
    assert sum("160 is not a power of two" in line for line in lines) == 2


class Counting:
    """A kernel that takes a second of a clock that stands still otherwise."""

    def __init__(self, clock: list[float]) -> None:
        self.clock, self.counted = clock, 0

    def run(self, copies: int, counts: bool) -> None:
        self.clock[0] += 1
        self.counted += counts


@pytest.mark.parametrize(("end", "counted"), [(3, None), (4, [1, 1]), (5, [2, 1]), (99, [3, 3])])
def test_rounds_end_in_time(monkeypatch: pytest.MonkeyPatch, end: float, counted: list[int] | None) -> None:
    """Two kernels, of which the first round does not count."""
    clock = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0] + 0.5)
    kernels = [Counting(clock), Counting(clock)]
    if counted is None:
        with pytest.raises(TimeoutError, match="before every kernel had been measured"):
            gpu._run_rounds(kernels, 1, 3, end)
    else:
        gpu._run_rounds(kernels, 1, 3, end)
        assert [kernel.counted for kernel in kernels] == counted


@pytest.mark.threadgroups
def test_no_time_is_a_line(backend_name: str) -> None:
    small = ["--shapes", "40x64", "--density", "0.5", "--rounds", "1", "--copy-megabytes", "1", "--minutes", "0.001"]
    command = [sys.executable, str(SCRIPT), "--backend", backend_name, "--model", "", *small]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("no time: 40x64")


def test_cublas_or_why_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    times, reason = cublas.measure([(64, 32)], 1000, 2)
    assert bool(times) != bool(reason)
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho '{\"shape\": [64, 32], \"seconds\": [1.0]}'\necho 'driver lost' >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    times, reason = cublas.measure([(64, 32), (32, 64)], 1000, 2)
    assert (times, reason) == ({(64, 32): [1.0]}, "the process ended with code 3: driver lost")
    script.write_text('#!/bin/sh\necho \'{"shape": [64, 32], "seconds": [1.0]}\'\nexec sleep 9\n')
    monkeypatch.setattr(cublas, "_SECONDS", 1)
    assert cublas.measure([(64, 32)], 1000, 2) == ({(64, 32): [1.0]}, "no more than these within 1 s")


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
