"""GPTQ in the row layout: rounding where nothing is compensated, nearer where inputs are correlated."""

import numpy as np
import pytest

from spqt_ti.convert.gptq import factored, loss
from spqt_ti.convert.gptq_rows import quantize_in_rows
from spqt_ti.errors import QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats import q4_k, q5_k, q8_0

SCHEMES = (q4_k.SCHEME, q5_k.SCHEME)
ROWS, COLS = 70, 300  # two superblocks, the second cut


def weights() -> np.ndarray:
    w = np.random.default_rng(0).standard_normal((ROWS, COLS)).astype(np.float32)
    w[3, 32:64] = 0  # a sub-block without a step
    return w


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_diagonal_h_is_round_to_nearest(scheme) -> None:
    h = np.diag(np.random.default_rng(1).uniform(0.1, 9, COLS))
    expected = layouts.quantize_matrix(weights(), "row", scheme)
    np.testing.assert_array_equal(quantize_in_rows(weights(), factored(h, 0.02), scheme), expected)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_loses_less_with_the_scales_of_rounding(scheme) -> None:
    rng, w = np.random.default_rng(2), weights()
    x = rng.standard_normal((900, COLS)) @ (np.eye(COLS) + 0.1 * rng.standard_normal((COLS, COLS)))
    h = x.T @ x / len(x)
    made, nearest = quantize_in_rows(w, factored(h, 0.02), scheme), layouts.quantize_matrix(w, "row", scheme)
    lost = [loss(layouts.dequantize_matrix(data, ROWS, COLS, "row", scheme) - w, h) for data in (made, nearest)]
    assert lost[0] < 0.7 * lost[1]
    headers = [data.reshape(-1, scheme.bytes)[:, :16] for data in (made, nearest)]
    np.testing.assert_array_equal(*headers)


def test_refuses_a_scheme_that_it_does_not_have() -> None:
    with pytest.raises(QuantizationError, match="Q4_K and Q5_K, not Q8_0"):
        quantize_in_rows(weights(), factored(np.eye(COLS), 0.02), q8_0.SCHEME)
