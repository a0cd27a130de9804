"""Gate and up rows of listed neurons on GPUs against float64 on the dequantised weights."""

from __future__ import annotations

import functools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from q4_k_matrices import Matrix, random_matrix

from spqt_ti.kernels.simt.listed_neurons import ListedNeurons
from spqt_ti.kernels.simt.row_words import RowWords

NEURONS, COLS = 301, 131  # two segments of a list, the last group of four with one neuron; odd in every way
X = np.random.default_rng(1).standard_normal(COLS).astype(np.float32)
BIASES = np.random.default_rng(2).standard_normal(2 * NEURONS).astype(np.float32)


@functools.cache
def matrix() -> Matrix:
    return random_matrix(2 * NEURONS, COLS, "row")


@functools.cache
def executor(parallel: bool) -> ListedNeurons:
    return ListedNeurons(matrix().data, RowWords(2 * NEURONS, COLS), "relu", parallel)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2, 5, 150, NEURONS - 1, NEURONS]))
def test_listed_neurons(seed: int, count: int) -> None:
    listed = np.sort(np.random.default_rng(seed).permutation(NEURONS)[:count]).astype(np.int32)
    got, read = executor(False)(X, listed, BIASES)
    products = matrix().weights @ X.astype(np.float64) + BIASES
    gate, up = products[:NEURONS], products[NEURONS:]
    error = matrix().tolerance(X).max()
    bound = error * (1 + np.abs(gate) + np.abs(up))
    on = np.isin(np.arange(NEURONS), listed)
    assert (np.abs(got - np.where(on, np.maximum(gate, 0) * up, 0)) <= bound).all()
    assert (read <= on).all()
    sure = np.abs(gate) > error
    np.testing.assert_array_equal(read[sure], (on & (gate > 0))[sure])
    parallel, both = executor(True)(X, listed, BIASES)
    np.testing.assert_array_equal(parallel, got)
    np.testing.assert_array_equal(both, on)
    np.testing.assert_array_equal(executor(False)(X, listed, BIASES)[0], got)
