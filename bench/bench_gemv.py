"""Speed of the Q4_K GEMVs on weights that are not in cache: `pytest bench/bench_gemv.py --benchmark-enable`.

Choose with -k, for instance `-k "4096x14336 and not b1"`. See spqt_ti/benchmark/gemv.py for what a round is, and
`spqt bench gemv` for the same as a table of interleaved rounds. Times are of one product. `extra_info` has the products
of a round, the bytes of weights that one reads per second and their fraction of what this machine can read, measured in
the same session.
"""

import time

import pytest

from spqt_ti.backend import start
from spqt_ti.benchmark.gemv import KERNELS, SPARSE
from spqt_ti.benchmark.gemv_drivers import Rows, Zigzag, collect_seconds
from spqt_ti.benchmark.shapes import NAMED

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

ROUNDS = 5
DENSITIES = (0.75, 0.6, 0.5, 0.35)
SHAPES = list(dict.fromkeys(shape for shapes in NAMED.values() for shape in shapes))
CASES = [(kernel, density) for kernel in KERNELS for density in (DENSITIES if kernel in SPARSE else (1.0,))]


_launch = {"products": 1}  # of the driver at work


def seconds_per_product() -> float:
    """A clock for which a launch of many products takes as long as one of them, so that shapes can be compared."""
    return time.perf_counter() / _launch["products"]


@pytest.fixture(scope="module", params=SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def drivers(request):
    threads = start("cpu").threads
    rows, zigzag = Rows(*request.param, threads), Zigzag(*request.param, threads)
    return {"row": rows, "b1": rows, "zigzag": zigzag, "b2": zigzag, "full": zigzag}


@pytest.mark.benchmark(timer=seconds_per_product)
@pytest.mark.parametrize(("kernel", "density"), CASES, ids=lambda v: str(v))
def test_gemv(benchmark, drivers, kernel, density, read_bandwidth):
    driver = drivers[kernel]
    _launch["products"] = driver.turns
    benchmark.pedantic(driver.run, (kernel, density), rounds=ROUNDS, warmup_rounds=1)
    if benchmark.enabled:
        seconds = benchmark.stats.stats.median
        speed = driver.read_bytes(kernel, density) / seconds
        info = {"products": driver.turns, "GB/s": speed / 1e9, "read_fraction": speed / read_bandwidth}
        benchmark.extra_info.update({k: round(v, 3) for k, v in info.items()})


@pytest.mark.parametrize("cols", sorted({cols for _, cols in SHAPES}))
def test_collect(benchmark, cols):
    """The active list of one x in cache: one worker."""
    seconds = benchmark.pedantic(collect_seconds, (cols,), rounds=1)
    benchmark.extra_info["microseconds"] = round(seconds * 1e6, 3)
