"""Speed of the Q4_K quantiser: `pytest bench/bench_pack.py --benchmark-enable`; weights per second in `extra_info`."""

import numpy as np
import pytest

from spqt_ti.formats.layout import LAYOUTS
from spqt_ti.kernels.pack.q4_k import quantize_q4_k

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")


# A large projection, and SmolLM2-135M's stacked gate and up.
@pytest.mark.parametrize("shape", [(4096, 4096), (3072, 576)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_quantize_q4_k(benchmark, layout, shape):
    w = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    benchmark.pedantic(quantize_q4_k, (w, layout), rounds=7, warmup_rounds=1)
    if benchmark.enabled:
        benchmark.extra_info["weights_per_second"] = w.size / benchmark.stats.stats.median
        benchmark.extra_info["best_weights_per_second"] = w.size / benchmark.stats.stats.min
