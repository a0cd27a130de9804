"""Speed of the quantisers: `pytest bench/bench_pack.py --benchmark-enable`; weights per second in `extra_info`."""

import numpy as np
import pytest

from spqt_ti.formats.layout import LAYOUTS
from spqt_ti.formats.schemes import SCHEMES
from spqt_ti.kernels.pack.quantize import quantize_matrix

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")


# A large projection, and SmolLM2-135M's stacked gate and up.
@pytest.mark.parametrize("shape", [(4096, 4096), (3072, 576)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=str)
def test_quantize(benchmark, scheme, layout, shape):
    w = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    benchmark.pedantic(quantize_matrix, (w, layout, scheme), rounds=7, warmup_rounds=1)
    if benchmark.enabled:
        benchmark.extra_info["weights_per_second"] = w.size / benchmark.stats.stats.median
        benchmark.extra_info["best_weights_per_second"] = w.size / benchmark.stats.stats.min
