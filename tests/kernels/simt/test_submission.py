"""Launches submitted together, as a graph and one after the other."""

import numpy as np
import pytest

from spqt_ti import backend
from spqt_ti.backend import ti
from spqt_ti.kernels.simt.groups import array_of
from spqt_ti.kernels.simt.submission import Launch, Submission
from spqt_ti.kernels.simt.transfer import upload

NEEDS_GRAPHS = pytest.mark.skipif(not backend.GRAPHS, reason=f"{ti.__name__} cannot submit several launches as one")


@ti.kernel
def multiply_and_add(source: array_of(ti.f32), target: array_of(ti.f32), factor: ti.i32, summand: ti.i32):
    ti.loop_config(block_dim=128)
    for i in range(128):
        target[i] = source[i] * factor + summand


@pytest.mark.parametrize("graphs", [False, pytest.param(True, marks=NEEDS_GRAPHS)], ids=["one by one", "graph"])
def test_in_order_with_their_scalars(graphs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "GRAPHS", graphs)
    x = np.arange(128, dtype=np.float32)
    arrays = {"x": upload(x), "y": upload(np.zeros_like(x)), "z": upload(np.zeros_like(x))}
    launches = [
        Launch(multiply_and_add, ("x", "y"), (2, "a")),
        Launch(multiply_and_add, ("y", "z"), ("b", 2)),
        Launch(multiply_and_add, ("z", "x"), (1, -5)),
    ]
    both = Submission(launches, arrays)
    for a, b in ((1, 3), (-7, 2)):
        both.submit(a=a, b=b)
        y = 2 * x + a
        np.testing.assert_array_equal(arrays["y"].to_numpy(), y)
        np.testing.assert_array_equal(arrays["z"].to_numpy(), b * y + 2)
        x = b * y + 2 - 5
        np.testing.assert_array_equal(arrays["x"].to_numpy(), x)
