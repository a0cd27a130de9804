"""A predictor's shapes and what it says."""

import numpy as np
import pytest

from spqt_ti.model.predictors import NeuronPredictor


def predictor(rank=3, hidden=5, intermediate=7, **changes):
    rng = np.random.default_rng(1)
    fields = {
        "fc1": rng.standard_normal((rank, hidden), np.float32),
        "fc2": rng.standard_normal((intermediate, rank), np.float32),
        "bias": rng.standard_normal(intermediate, np.float32),
    }
    return NeuronPredictor(**(fields | changes))


def test_predicts_by_the_product_of_both_matrices():
    p, x = predictor(), np.random.default_rng(2).standard_normal((2, 4, 5))
    product = p.fc2.astype(np.float64) @ p.fc1.astype(np.float64)
    np.testing.assert_array_equal(p.predict(x), x @ product.T + p.bias > 0)
    assert (p.rank, p.hidden, p.intermediate) == (3, 5, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 6}, "rank 6, expected 1 to hidden = 5"),
        ({"rank": 0}, "rank 0"),
        ({"bias": np.zeros(6, np.float32)}, "do not fit"),
        ({"fc2": np.zeros((7, 4), np.float32)}, "do not fit"),
        ({"fc1": np.zeros((3, 5))}, "float64"),
        ({"bias": np.zeros((7, 1), np.float32)}, "expected f32 of 1 axes"),
        ({"fc1": np.full((3, 5), np.nan, np.float32)}, "not finite"),
    ],
)
def test_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        predictor(**changes)
