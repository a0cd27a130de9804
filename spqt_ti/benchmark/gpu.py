"""Speed of a GPU: copy bandwidth, the Q4_K GEMVs on it, and decoding.

Weights are cold: launches go in turn through as many copies of the matrix as exceed the caches. Device time is the
GPU's own (events, timestamps), wall time that of launches submitted one after the other, which includes launch costs.
Rounds are interleaved; a figure is the median of the rounds.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spqt_ti.api import Model, load
from spqt_ti.backend import device_seconds, ti
from spqt_ti.benchmark.gemv_drivers import stored_bytes
from spqt_ti.benchmark.shapes import Shape
from spqt_ti.kernels.simt.gemv import Split, ZigzagGemv
from spqt_ti.kernels.simt.row_gemv import RowGemv
from spqt_ti.kernels.simt.transfer import make_copy_all, zeros
from spqt_ti.kernels.simt.zigzag import ZigzagWords
from spqt_ti.model.plans import MOST_TOKENS

LARGE = 64e6  # bytes of a matrix from which on the targets hold
PROMPT = "The capital of France is"


@dataclass(frozen=True)
class GpuGemvRow:
    """A kernel on a shape: "row", "b1", "zigzag", "b2", "full", or "cublas f16". Times in microseconds per product,
    bytes those of the weights that are active (row layout, f16: all).
    """

    rows: int
    cols: int
    kernel: str
    density: float
    device_microseconds: float
    spread: float
    wall_microseconds: float
    gigabytes_per_second: float
    copy_fraction: float
    speedup_over_dense: float
    speedup_over_row: float


@dataclass(frozen=True)
class GpuDecodeRow:
    """Greedy decoding at a sparsity; `host_milliseconds`: what submitting a token takes the host."""

    model: str
    sparsity: float
    realised_sparsity: float
    tokens_per_second: float
    host_milliseconds: float


def copy_bandwidth(megabytes: int = 256, rounds: int = 5) -> float:
    """Bytes per second, read and written, of copying an array."""
    size = megabytes * 250_000
    source, target, copy = zeros(ti.f32, size), zeros(ti.f32, size), make_copy_all(size)
    copy(source, target)
    seconds = [device_seconds(lambda: copy(source, target)) for _ in range(rounds)]
    return 8 * size / float(np.median(seconds))


def measure_gemv(
    shape: Shape, densities: Sequence[float], bandwidth: float, cold_bytes: int, rounds: int, split: Split | None = None
) -> list[GpuGemvRow]:
    """All kernels on one shape, the sparse ones at each density; `bandwidth` from `copy_bandwidth`."""
    copies = -(-cold_bytes // stored_bytes(*shape, "zigzag", warm=True)[0].size)
    timings = [_Timing(*run) for run in _runs(shape, densities, copies, split)]
    for round_ in range(rounds + 1):
        for timing in timings:
            timing.run(copies, counts=round_ > 0)  # the first compiles
    cublas = cublas_seconds(shape, copies, rounds)
    if cublas is not None:
        timings.append(_Timing("cublas f16", 1.0, None, 2 * shape[0] * shape[1], cublas, cublas))
    dense, row = (next(t.median for t in timings if t.kernel == name) for name in ("zigzag", "row"))
    return [
        GpuGemvRow(
            *shape, t.kernel, t.density, 1e6 * t.median,
            float(np.quantile(t.device, 0.8) - np.quantile(t.device, 0.2)) / 2 * 1e6, 1e6 * float(np.median(t.wall)),
            t.size / t.median / 1e9, t.size / t.median / bandwidth, dense / t.median, row / t.median,
        )
        for t in timings
    ]  # fmt: skip


@dataclass
class _Timing:
    """Times of one kernel: seconds per product on the device and in all, one entry per round."""

    kernel: str
    density: float
    launch: Callable[[int], None] | None
    size: float
    device: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return float(np.median(self.device))

    def run(self, copies: int, counts: bool) -> None:
        """Launch once on every copy."""
        begin = time.perf_counter()
        seconds = device_seconds(lambda: [self.launch(copy) for copy in range(copies) if self.launch])
        if counts:
            self.device.append(seconds / copies)
            self.wall.append((time.perf_counter() - begin) / copies)


def measure_decode(name: str, sparsities: Sequence[float], backend: str, tokens: int) -> list[GpuDecodeRow]:
    """Greedy decoding of `tokens` after a short prompt."""
    model = load(name, backend)
    prompt = model.tokenizer.encode(PROMPT)
    return [_decode_row(model, name, sparsity, prompt, tokens) for sparsity in sparsities]


def _decode_row(model: Model, name: str, sparsity: float, prompt: Sequence[int], tokens: int) -> GpuDecodeRow:
    llama = model.llama
    model.apply(model.calibrate().policy(sparsity) if sparsity else None)
    llama.reset()
    token = int(llama.prefill(prompt)[0].argmax())
    llama.decode_greedy(token, 1)
    active, begin = np.zeros(llama.active.shape), time.perf_counter()
    for done in range(0, tokens, MOST_TOKENS):
        token = llama.decode_greedy(token, min(MOST_TOKENS, tokens - done))[-1]
        active += llama.active
    seconds = time.perf_counter() - begin
    skipped = 1 - active.sum() / (tokens * llama.config.num_hidden_layers * llama.inputs().sum())
    return GpuDecodeRow(name, sparsity, float(skipped), tokens / seconds, 1e3 * host_seconds(model))


def host_seconds(model: Model, rounds: int = 8) -> float:
    """Median time to submit a token, with nothing waiting before it."""
    llama, seconds = model.llama, []
    for _ in range(rounds):
        ti.sync()
        begin = time.perf_counter()
        llama.submit(0)
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


def cublas_seconds(shape: Shape, copies: int, rounds: int) -> list[float] | None:
    """Seconds per f16 product with cuBLAS, by way of torch; None where there is no torch with CUDA."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    weights = [torch.randn(shape, device="cuda", dtype=torch.float16) for _ in range(max(1, copies // 4))]
    x, times = torch.randn(shape[1], device="cuda", dtype=torch.float16), []
    for _ in range(rounds + 1):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for w in weights:
            torch.mv(w, x)
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / 1e3 / len(weights))
    return times[1:]


def missed_targets(rows: Sequence[GpuGemvRow]) -> Iterator[str]:
    """Of matrices of LARGE bytes: dense at 70 % of the copy bandwidth, half of the inputs 1.6 times as fast; of 4096 x
    4096 and larger: sparse never slower than dense.
    """
    for row in rows:
        label = f"{row.rows}x{row.cols} {row.kernel} {row.density:.0%}"
        size = row.rows * row.cols * 0.5625
        if size >= LARGE and row.kernel == "zigzag" and row.copy_fraction < 0.7:
            yield f"{label}: {row.copy_fraction:.0%} of copy bandwidth, target 70 %"
        if size >= LARGE and row.kernel == "full" and row.density == 0.5 and row.speedup_over_dense < 1.6:
            yield f"{label}: {row.speedup_over_dense:.2f}x dense, target 1.6x"
        if min(row.rows, row.cols) >= 4096 and row.kernel == "full" and row.speedup_over_dense < 1:
            yield f"{label}: {row.speedup_over_dense:.2f}x dense, slower"


def _runs(
    shape: Shape, densities: Sequence[float], copies: int, split: Split | None
) -> Iterator[tuple[str, float, Callable[[int], None], float]]:
    """Kernel, density, its launch on a copy of the matrix, and the bytes of weights that it needs."""
    rows, cols = shape
    x = np.random.default_rng(1).standard_normal(cols, dtype=np.float32)
    row_data, zigzag_data = (stored_bytes(rows, cols, layout, warm=True)[0] for layout in ("row", "zigzag"))
    row, naive = (RowGemv(row_data, rows, cols, skips, copies) for skips in (False, True))
    zigzag, b2 = (ZigzagGemv(zigzag_data, ZigzagWords(rows, cols), split, fly, copies) for fly in (False, True))
    for driver in (row, naive, zigzag, b2):
        driver.load(x)
    yield "row", 1.0, row.run, row_data.size
    yield "zigzag", 1.0, zigzag.run, zigzag_data.size
    for density in densities:
        threshold = float(np.quantile(np.abs(x), 1 - density))
        yield "b1", density, functools.partial(naive.run, threshold=threshold), row_data.size
        yield "b2", density, functools.partial(b2.run, threshold=threshold), density * zigzag_data.size
        yield "full", density, functools.partial(zigzag.run_full, threshold=threshold), density * zigzag_data.size
