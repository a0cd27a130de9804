"""Gates, and their activations in float64, for the tests of both engines."""

import math

import numpy as np

GATES = np.concatenate([np.linspace(-12, 12, 990), [0.0, -0.0, 1e-30, -1e-30, 100, -100, 1e6, -1e6, 1e30, -1e30]])
UP = np.linspace(0.5, 2.0, GATES.size)

FUNCTIONS = {
    "silu": lambda x: x / (1 + math.exp(-x)) if x > -700 else 0.0,
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * math.erfc(-x / math.sqrt(2)) / 2,
    "gelu_pytorch_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}


def check(name: str, got: np.ndarray) -> None:
    """f32 `got` of GATES and UP: erfc errs by 1.5e-7 and exp by 1e-6, of which |x| is a multiple.

    Far below zero exp is clamped to e^88, so that nothing is exactly zero.
    """
    gates, up = GATES.astype(np.float32).astype(np.float64), UP.astype(np.float32)
    expected = np.array([FUNCTIONS[name](x) for x in gates]) * up
    assert np.isfinite(got).all()
    error = np.abs(got - expected) / np.maximum(np.abs(gates), 1e-30)
    assert error.max() < 1e-6
    assert (np.abs(got[gates < -11]) <= np.abs(gates[gates < -11]) * 1e-4).all()
