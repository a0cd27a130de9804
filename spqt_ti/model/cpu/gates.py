"""Gates in the memory that the CPU's kernels read."""

from __future__ import annotations

import numpy as np

from spqt_ti.backend import host_view, ndarray
from spqt_ti.kernels.cpu.vectors import f32x16
from spqt_ti.model.gates import GatePlan, Gates


class WorkerGates(Gates):
    """Gates in an array (f32 x 16) that the CPU's decode and prefill read in place."""

    def __init__(self, layers: int, inputs: np.ndarray) -> None:
        plan = GatePlan.plan(layers, int(inputs.max()))
        self.array = ndarray(f32x16, (plan.vectors,))
        values = host_view(self.array).reshape(-1)
        values[:] = 0
        super().__init__(plan, inputs, values)
