"""Selectors, and their activations in float64, for the tests of both engines."""

import math

import numpy as np

GATES = np.concatenate([np.linspace(-12, 12, 990), [0.0, -0.0, 1e-30, -1e-30, 100, -100, 1e6, -1e6, 1e30, -1e30]])
UP = np.linspace(0.5, 2.0, GATES.size) * np.where(np.arange(GATES.size) % 3 == 1, -1, 1)

THRESHOLD = 0.5  # of fatrelu
FUNCTIONS = {
    "silu": lambda x: x / (1 + math.exp(-x)) if x > -700 else 0.0,
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "fatrelu": lambda x: x if x > THRESHOLD else 0.0,
    "gelu": lambda x: x * math.erfc(-x / math.sqrt(2)) / 2,
    "gelu_pytorch_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}


# Arguments of make_activate besides the exponential.
CASES = [(name, THRESHOLD if name == "fatrelu" else 0.0, False) for name in FUNCTIONS] + [("fatrelu", THRESHOLD, True)]


def check(name: str, of_up: bool, got: np.ndarray) -> None:
    """f32 `got` of GATES and UP: erfc errs by 1.5e-7 and exp by 1e-6, of which |x| is a multiple.

    Far below zero exp is clamped to e^88, so that nothing is exactly zero.
    """
    gates, up = GATES.astype(np.float32).astype(np.float64), UP.astype(np.float32).astype(np.float64)
    expected = np.array([FUNCTIONS[name](x) for x in gates])
    expected *= np.array([FUNCTIONS[name](x) for x in up]) if of_up else up
    fits = np.abs(expected) < 1e38  # not the square of 1e30
    assert np.isfinite(got[fits]).all()
    assert (got[~fits] == np.inf * np.sign(up[~fits])).all()
    error = (
        np.abs(got[fits] - expected[fits])
        / np.maximum.reduce([np.abs(gates), np.abs(expected), gates * 0 + 1e-30])[fits]
    )
    assert error.max() < 1e-6
    assert (np.abs(got[gates < -11]) <= np.abs(gates[gates < -11]) * 1e-4).all()
    if name in ("relu", "relu2", "fatrelu"):
        assert not got[gates <= (THRESHOLD if name == "fatrelu" else 0)].any()
