"""The fast transform on a GPU against the dense matrix that it stands for, in float64."""

import numpy as np
import pytest

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.groups import SHARED, array_of, log2, round_up
from spqt_ti.kernels.simt.hadamard import BLOCK, BLOCK_THREADS, Runs, make_combine_runs, make_transform_block
from spqt_ti.kernels.simt.transfer import upload
from spqt_ti.model.hadamard import ONLINE_RUN, Passes, Transform


def make_transform(runs: Runs):
    """transform(a): from its start to behind the factor."""
    size = runs.order * runs.run
    target = runs.factor + runs.order**2
    transform_block, combine_runs = make_transform_block(runs), make_combine_runs(runs)
    blocks, block_log2, threads = runs.blocks, log2(BLOCK_THREADS), round_up(size, 128)

    @ti.kernel
    def transform(a: array_of(ti.f32)):
        ti.loop_config(block_dim=BLOCK_THREADS)
        for i in range(blocks * BLOCK_THREADS):
            shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
            first, t = (i >> block_log2) * BLOCK, i & (BLOCK_THREADS - 1)
            ti.simt.block.sync()
            for part in ti.static(range(BLOCK // BLOCK_THREADS)):
                j = part * BLOCK_THREADS + t
                shared[j] = 0.0
                if first + j < size:
                    shared[j] = a[first + j]
            transform_block(shared, t)
            for part in ti.static(range(BLOCK // BLOCK_THREADS)):
                j = part * BLOCK_THREADS + t
                if first + j < size:
                    a[first + j] = shared[j]
        ti.loop_config(block_dim=128)
        for i in range(threads):
            if i < size:
                a[target + i] = combine_runs(a, 0, i)

    return transform


# 160 = 5 * 32 is part of a block, 1536 one and a half, 2048 = 2 * 1024.
@pytest.mark.parametrize("size", [160, 576, 1536, 2048])
def test_fast_is_dense(size: int) -> None:
    passes = Passes.of(Transform.of(size, ONLINE_RUN))
    runs = Runs(passes.order, passes.run, size)
    x = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    a = upload(np.concatenate([x, passes.factor().reshape(-1), np.zeros(size, np.float32)]))
    make_transform(runs)(a)
    expected = Transform.of(size, ONLINE_RUN).apply(x.astype(np.float64))
    np.testing.assert_allclose(a.to_numpy()[-size:], expected, rtol=0, atol=3e-6)
