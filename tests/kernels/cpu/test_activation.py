"""The activations on 16 lanes against float64."""

import activations
import numpy as np
import pytest
from device_vectors import download, upload

from spqt_ti.backend import start, ti
from spqt_ti.kernels.cpu.vectors import array_of, exp_lanes, f32x16
from spqt_ti.kernels.shared.activation import make_activate


@pytest.fixture(scope="module", autouse=True)
def _runtime():
    start("cpu")


@pytest.mark.parametrize(("name", "threshold", "of_up"), activations.CASES)
def test_against_float64(name: str, threshold: float, of_up: bool) -> None:
    activate = make_activate(name, exp_lanes, threshold, of_up)

    @ti.kernel
    def run(gate: array_of(f32x16), up: array_of(f32x16), vectors: ti.i32):
        for _ in range(1):
            for i in range(vectors):
                gate[i] = activate(gate[i], up[i])

    size = -(-activations.GATES.size // 16) * 16
    gate, up = (upload(np.resize(values, size).astype(np.float32)) for values in (activations.GATES, activations.UP))
    run(gate, up, size // 16)
    activations.check(name, of_up, download(gate)[: activations.GATES.size])


def test_an_unknown_name() -> None:
    with pytest.raises(KeyError, match="quick_gelu"):
        make_activate("quick_gelu", exp_lanes)
