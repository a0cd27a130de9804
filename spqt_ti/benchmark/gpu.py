"""Speed of a GPU: copy bandwidth, the Q4_K GEMVs on it, and decoding.

Weights are cold: launches go in turn through as many copies of the matrix as exceed the caches. Device time is that of
one graph of all launches, from submission to end, with the gaps between tasks, and with waiting for the host where that
is the slower; or, where a profiler was asked for, that of the device's events (`backend.kernel_seconds`), summed over
tasks. Wall time is that of launches one by one from Python. Rounds are interleaved; a figure is the median of the
rounds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from spqt_ti.api import Model, load
from spqt_ti.backend import kernel_seconds, ti
from spqt_ti.benchmark.gemv_drivers import stored_bytes
from spqt_ti.benchmark.shapes import Shape
from spqt_ti.kernels.simt.division import Division
from spqt_ti.kernels.simt.gemv import ZigzagGemv
from spqt_ti.kernels.simt.row_gemv import RowGemv
from spqt_ti.kernels.simt.row_words import RowWords
from spqt_ti.kernels.simt.submission import Launch, Submission
from spqt_ti.kernels.simt.transfer import floats4, make_copy_all, zeros
from spqt_ti.kernels.simt.zigzag import ZigzagWords
from spqt_ti.model.engine import MOST_TOKENS
from spqt_ti.model.sites import Site, matrix_shapes, realised_sparsity

LARGE = 64e6  # bytes of a matrix from which on the targets hold
COLD_SECONDS = 0.05  # in which a device reads its cold copies: a slow one, with its small cache, needs no more than two
DECODE_SECONDS = 10.0  # after which no further tokens are begun, for speed and for the host's work
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
    """Greedy decoding at a sparsity; `host_milliseconds`: the host's CPU time to submit a token, in a run of tokens as
    greedy decoding submits them, and `host_alone_milliseconds` of a token before which the device had nothing to do.
    """

    model: str
    sparsity: float
    realised_sparsity: float
    tokens_per_second: float
    host_milliseconds: float
    host_alone_milliseconds: float


def copy_bandwidth(megabytes: int = 256, rounds: int = 5) -> float:
    """Bytes per second, read and written, of copying an array."""
    size = megabytes * 62_500
    arrays = {"source": zeros(floats4, size), "target": zeros(floats4, size)}
    copies = Submission([Launch(make_copy_all(size), tuple(arrays))] * 4, arrays)
    seconds(copies)
    return 4 * 32 * size / float(np.median([device_seconds(copies) for _ in range(rounds)]))


def seconds(submission: Submission) -> float:
    """Time from submission to end."""
    ti.sync()
    begin = time.perf_counter()
    submission.submit()
    ti.sync()
    return time.perf_counter() - begin


def device_seconds(submission: Submission) -> float:
    """Time by the device's clock; where it has none, from submission to end."""
    kernel_seconds()  # of what ran before
    taken = seconds(submission)
    measured = kernel_seconds()
    return taken if measured is None else measured


def measure_gemv(
    shape: Shape, densities: Sequence[float], bandwidth: float, cold_bytes: int, rounds: int,
    division: Division | None = None, cublas: Sequence[float] | None = None, end: float = float("inf"),
) -> list[GpuGemvRow]:  # fmt: skip
    """All kernels on one shape, the sparse ones at each density; `bandwidth` from `copy_bandwidth`, `cublas` its
    seconds where they are known. Stops after fewer rounds when `time.monotonic` comes to `end`; TimeoutError before the
    first is complete.
    """
    cold_bytes = min(cold_bytes, int(bandwidth * COLD_SECONDS))
    copies = max(2, -(-cold_bytes // stored_bytes(*shape, "zigzag", warm=True)[0].size))
    timings = list(_timings(shape, densities, copies, division))
    _run_rounds(timings, copies, rounds, end)
    if cublas is not None:
        times = list(cublas)
        timings.append(_Timing("cublas f16", 1.0, 2 * shape[0] * shape[1], None, None, times, times))
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
    size: float
    graph: Submission | None
    one_by_one: Submission | None
    device: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return float(np.median(self.device))

    def run(self, copies: int, counts: bool) -> None:
        """Launch once on every copy."""
        for submission, times, clock in (
            (self.graph, self.device, device_seconds), (self.one_by_one, self.wall, seconds)
        ):  # fmt: skip
            assert submission is not None
            taken = clock(submission) / copies
            if counts:
                times.append(taken)


def _run_rounds(timings: Sequence[_Timing], copies: int, rounds: int, end: float) -> None:
    """The first round compiles and does not count."""
    for round_ in range(rounds + 1):
        for timing in timings:
            if time.monotonic() > end:
                if round_ < 2:
                    raise TimeoutError("the time was over before every kernel had been measured")
                return
            timing.run(copies, counts=round_ > 0)


def measure_decode(
    name: str, sparsities: Sequence[float], backend: str, tokens: int, bisects: bool = False
) -> Iterator[GpuDecodeRow]:
    """Greedy decoding of `tokens`, on a slow device fewer, after a short prompt. `bisects`: see `bisect_thresholds`."""
    model = load(name, backend=backend)
    prompt = model.tokenizer.encode(PROMPT)
    for sparsity in sparsities:
        if not bisects:
            model.apply(model.calibrate().policy(sparsity) if sparsity else None)
        elif sparsity:
            bisect_thresholds(model, sparsity)
        yield _decode_row(model, name, sparsity, prompt, tokens)


def bisect_thresholds(model: Model, sparsity: float, steps: int = 24) -> None:
    """For models of random weights, which no text calibrates: set each site's threshold, by bisection on the numbers of
    active inputs of single tokens, to where it leaves this share of its inputs out.
    """
    llama = model.llama
    shapes = matrix_shapes(llama.config)
    wanted = np.array([shapes[site.label].cols for site in Site]) * (1 - sparsity)
    low, high = np.full(llama.thresholds.shape, 1e-6), np.full(llama.thresholds.shape, 64.0)
    for _ in range(steps):
        middle = np.sqrt(low * high)
        llama.reset()
        llama.thresholds[:] = middle
        llama.decode_greedy(0, 1)
        too_many = llama.active > wanted
        low, high = np.where(too_many, middle, low), np.where(too_many, high, middle)


def _decode_row(model: Model, name: str, sparsity: float, prompt: Sequence[int], tokens: int) -> GpuDecodeRow:
    llama = model.llama
    llama.reset()
    token = int(llama.prefill(prompt)[0].argmax())
    llama.decode_greedy(token, 1)
    active, done, begin = np.zeros(llama.active.shape), 0, time.perf_counter()
    while done < tokens and (not done or time.perf_counter() < begin + DECODE_SECONDS):
        count = min(MOST_TOKENS, tokens - done)
        token = llama.decode_greedy(token, count)[-1]
        active += llama.active
        done += count
    taken = time.perf_counter() - begin
    skipped = realised_sparsity(llama.config, active / done)
    host = (1e3 * host_seconds(model, count) for count in (MOST_TOKENS, 1))
    return GpuDecodeRow(name, sparsity, skipped, done / taken, *host)


def host_seconds(model: Model, count: int, rounds: int = 20) -> float:
    """CPU time of the submitting thread per token, the median of runs of `count` tokens: 20, on a slow device fewer."""
    times: list[float] = []
    end = time.perf_counter() + DECODE_SECONDS
    while len(times) < rounds and (len(times) < 3 or time.perf_counter() < end):
        model.llama.reset()
        ti.sync()
        begin = time.thread_time()
        for _ in range(count):
            model.llama.submit(0)
        times.append((time.thread_time() - begin) / count)
    ti.sync()
    return float(np.median(times))


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


def _timings(shape: Shape, densities: Sequence[float], copies: int, division: Division | None) -> Iterator[_Timing]:
    rows, cols = shape
    x = np.random.default_rng(1).standard_normal(cols, dtype=np.float32)
    row_data, zigzag_data = (stored_bytes(rows, cols, layout, warm=True)[0] for layout in ("row", "zigzag"))
    row, naive = (RowGemv(row_data, RowWords(rows, cols), skips, copies) for skips in (False, True))
    zigzag, b2 = (ZigzagGemv(zigzag_data, ZigzagWords(rows, cols), division, fly, copies) for fly in (False, True))
    for driver in (row, naive, zigzag, b2):
        driver.load(x)

    def timing(kernel: str, driver: RowGemv | ZigzagGemv, density: float, size: float) -> _Timing:
        threshold = float(np.quantile(np.abs(x), 1 - density))
        make = driver.launch_full if kernel == "full" and isinstance(driver, ZigzagGemv) else driver.launch
        launches = [make(copy, threshold) for copy in range(copies)]
        graph, one_by_one = (Submission(launches, driver.arrays, graph) for graph in (True, False))
        return _Timing(kernel, density, size, graph, one_by_one)

    yield timing("row", row, 1.0, row_data.size)
    yield timing("zigzag", zigzag, 1.0, zigzag_data.size)
    for density in densities:
        yield timing("b1", naive, density, row_data.size)
        yield timing("b2", b2, density, density * zigzag_data.size)
        yield timing("full", zigzag, density, density * zigzag_data.size)
