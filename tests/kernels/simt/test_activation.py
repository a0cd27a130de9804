"""The activations on GPUs against float64."""

import activations
import numpy as np
import pytest

from spqt_ti.backend import ti
from spqt_ti.kernels.shared.activation import make_activate
from spqt_ti.kernels.simt.groups import array_of, round_up
from spqt_ti.kernels.simt.transfer import upload


@pytest.mark.parametrize(("name", "threshold", "of_up"), activations.CASES)
def test_against_float64(name: str, threshold: float, of_up: bool) -> None:
    activate, size = make_activate(name, ti.exp, threshold, of_up), round_up(activations.GATES.size, 64)

    @ti.kernel
    def run(gate: array_of(ti.f32), up: array_of(ti.f32)):
        ti.loop_config(block_dim=64)
        for i in range(size):
            gate[i] = activate(gate[i], up[i])

    gate, up = (upload(np.resize(values, size).astype(np.float32)) for values in (activations.GATES, activations.UP))
    run(gate, up)
    activations.check(name, of_up, gate.to_numpy()[: activations.GATES.size])
