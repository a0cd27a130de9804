"""Feed-forward networks by neuron predictors on the CPU: bit for bit the dense ones without the neurons that are off.

All tests share one decode kernel: ranks up to 32 are completed to the same.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tiny_containers
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from spqt_ti.errors import PolicyError
from spqt_ti.formats import q8_0
from spqt_ti.model.predictors import Executor, NeuronPredictor, blocks_of
from spqt_ti.model.reference import Reference
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES

TOKENS = [0, 17, 203, 5, 299]
CONFIG = tiny_models.tiny_config(hidden_act="relu")
NEURONS, HIDDEN = CONFIG.intermediate_size, CONFIG.hidden_size
each_executor = pytest.mark.parametrize("executor", list(Executor))


@functools.cache
def llama() -> Llama:
    folder = tiny_containers.folder() / "neurons"
    source = tiny_models.write_huggingface(folder / "source", CONFIG, tiny_models.random_weights(CONFIG))
    container = tiny_containers.quantize(source, folder / "quantised", "zigzag,gate_up=row")
    return Llama(container, threads=tiny_containers.THREADS, context=64, exact=True)


def predictor(rank: int, bias: np.ndarray | float = 0.0) -> NeuronPredictor:
    rng = np.random.default_rng(rank)
    fc1, fc2 = (rng.standard_normal(shape).astype(np.float32) for shape in ((rank, HIDDEN), (NEURONS, rank)))
    return NeuronPredictor(fc1, fc2, np.full(NEURONS, bias, np.float32))


def constant(on: np.ndarray) -> dict[int, NeuronPredictor]:
    """Predictors of both layers by which these neurons (bool [NEURONS]) alone are on."""
    return {layer: predictor(rank, np.where(on, 1e9, -1e9)) for layer, rank in enumerate((1, 20))}


def decode(skips_zeros: bool = False) -> np.ndarray:
    """Logits of TOKENS. `skips_zeros`: down skips inputs of zero, as it does with predictors: for the same order of
    sums.
    """
    model = llama()
    model.reset()
    model.thresholds[:] = 0
    model.thresholds[:, 3] = 1e-37 if skips_zeros else 0
    return np.stack([model.decode(token).copy() for token in TOKENS])


@each_executor
def test_every_neuron_on_is_dense(executor: Executor) -> None:
    llama().set_predictors(None)
    dense = decode(skips_zeros=True)
    llama().set_predictors(constant(np.full(NEURONS, True)), executor)
    np.testing.assert_array_equal(decode(), dense)
    np.testing.assert_array_equal(llama().neurons[:, 0], NEURONS)
    survivors = llama().neurons[:, 1]
    assert ((survivors < NEURONS) == (executor is Executor.SEQUENTIAL)).all()


@pytest.mark.parametrize("count", [0, 1, 5, NEURONS - 1])
def test_executors_agree(count: int) -> None:
    """And with masked prefill, which zeroes what is off. False positives change nothing: PARALLEL has all of them."""
    on = np.random.default_rng(count).permutation(NEURONS) < count
    llama().set_predictors(constant(on))
    sequential = decode()
    assert (llama().neurons[:, 0] == count).all()
    np.testing.assert_array_equal(decode(), sequential)
    llama().set_predictors(constant(on), "parallel")
    np.testing.assert_array_equal(decode(), sequential)
    llama().reset()
    masked = llama().prefill(TOKENS, logits="all", masked=True)
    np.testing.assert_allclose(sequential, masked, rtol=0, atol=1e-5 * np.abs(masked).max())


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-40, 40), st.sampled_from([1, 7, 16, 20, 31]))
def test_executors_agree_whatever_is_predicted(seed: int, bias: float, rank: int) -> None:
    """From no neuron to all of them, by what the input says; a repeat gives the same bits."""
    biases = np.random.default_rng(seed).normal(bias, 20, NEURONS)
    guesses = dict.fromkeys((0, 1), predictor(rank, biases.astype(np.float32)))
    llama().set_predictors(guesses)
    sequential, read = decode(), llama().neurons.copy()
    np.testing.assert_array_equal(decode(), sequential)
    llama().set_predictors(guesses, "parallel")
    np.testing.assert_array_equal(decode(), sequential)
    assert (llama().neurons[:, 0] == read[:, 0]).all()
    assert (read[:, 1] <= read[:, 0]).all()
    llama().reset()
    masked = llama().prefill(TOKENS, logits="all", masked=True)
    np.testing.assert_allclose(sequential, masked, rtol=0, atol=1e-5 * np.abs(masked).max())


def test_predictions_are_those_of_the_factors() -> None:
    """Against NumPy in f64 on the factors as Q8_0 has them; and a layer without predictor runs whole."""
    model, guess = llama(), predictor(20)
    model.set_predictors({1: guess})
    got = decode()
    rounded = [
        q8_0.dequantize(blocks_of(np.pad(factor, ((0, 0), (0, -factor.shape[1] % 32)))).reshape(-1, 34))
        .reshape(len(factor), -1)[:, : factor.shape[1]]
        .astype(np.float64)
        for factor in (guess.fc1, guess.fc2)
    ]
    kept = []

    def mask(layer: int, site: str, x: np.ndarray) -> np.ndarray:
        if layer == 1 and site == "gate_up":
            kept.append((x @ rounded[0].T) @ rounded[1].T > 0)
        return np.where(kept[-1], x, 0) if layer == 1 and site == "down" else x

    weights = {name: values.astype(np.float64) for name, values in dict(model._container.weights()).items()}
    expected = Reference(CONFIG, weights).logits(TOKENS, mask=mask)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert model.neurons.tolist()[0] == [0, 0]
    assert model.neurons[1, 0] == kept[0][0, -1].sum()


def test_thresholds_of_attention_beside_predictors() -> None:
    """One token: each mask alone skips what it says, both together give the masked reference in f64."""
    model, on = llama(), np.random.default_rng(3).permutation(NEURONS) < 40
    model.set_predictors(constant(on))
    thresholds = np.float32([0.3, 0.2, 0, 0])
    margin = []

    def mask(layer: int, site: str, x: np.ndarray) -> np.ndarray:
        if site == "down":
            return np.where(on, x, 0)
        t = thresholds[SITES.index(site)]
        margin.append(np.abs(np.abs(x) - t).min() if t else np.inf)
        return np.where(np.abs(x) > t, x, 0)

    weights = {name: values.astype(np.float64) for name, values in dict(model._container.weights()).items()}
    expected = Reference(CONFIG, weights).logits(TOKENS[1:2], mask=mask)[0]
    assert min(margin) > 1e-5  # no input's side of its threshold is a matter of rounding
    model.reset()
    model.thresholds[:] = thresholds
    try:
        got = model.decode(TOKENS[1]).copy()
        active = model._decode.active.copy()
        masked = (model.reset(), model.prefill(TOKENS[1:2], logits="all", masked=True))[1][0]
    finally:
        model.thresholds[:] = 0
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(masked, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert (active[:, :2] > 0).all()
    assert (active[:, :2] < HIDDEN).all()
    assert (model.neurons[:, 0] == 40).all()


def test_traffic_counts_rows_and_predictor() -> None:
    model = llama()
    model.set_predictors(None)
    decode()
    dense = model.traffic.bytes_per_token(model.active)
    on = np.arange(NEURONS) < 16
    model.set_predictors(constant(on), "parallel")
    decode()
    saved = dense - model.traffic.bytes_per_token(model.active)
    rows = model.traffic.columns[:, 2].sum() * HIDDEN * (1 - 16 / NEURONS)
    skipped = (NEURONS - model._decode.active[:, 3]) @ model.traffic.columns[:, 3]
    assert saved == pytest.approx(rows + skipped - model._predicted.predictor_bytes.sum())


def test_what_does_not_fit() -> None:
    good = predictor(1)
    with pytest.raises(PolicyError, match="layer 2 of a model with 2 layers"):
        llama().set_predictors({2: good})
    with pytest.raises(PolicyError, match="192 inputs and 159 neurons, the model 192 and 160"):
        llama().set_predictors({0: NeuronPredictor(good.fc1, good.fc2[1:], good.bias[1:])})
    with pytest.raises(PolicyError, match="unknown executor 'both'; there are: sequential, parallel"):
        llama().set_predictors({0: good}, "both")
    with pytest.raises(PolicyError, match="quantise with --layout zigzag,gate_up=row"):
        tiny_containers.llama("gqa").set_predictors({0: good})
