"""Feed-forward networks by neuron predictors on GPUs: the dense ones without the neurons that are off.

All tests share one model and one number of predictors, so few kernels are compiled.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tiny_containers
import tiny_models

from spqt_ti.container import Container
from spqt_ti.formats import q8_0
from spqt_ti.model.predictors import Executor, NeuronPredictor, factor_blocks
from spqt_ti.model.reference import Reference
from spqt_ti.model.runner import Llama

pytestmark = pytest.mark.threadgroups

TOKENS = [0, 17, 203]
CONFIG = tiny_models.tiny_config(hidden_act="relu", intermediate_size=288)  # two segments of a list
NEURONS, HIDDEN = CONFIG.intermediate_size, CONFIG.hidden_size


@functools.cache
def container() -> Container:
    folder = tiny_containers.folder() / "simt-neurons"
    source = tiny_models.write_huggingface(folder / "source", CONFIG, tiny_models.random_weights(CONFIG))
    return tiny_containers.quantize(source, folder / "quantised", "zigzag,gate_up=row")


@functools.cache
def llama() -> Llama:
    return Llama(container(), context=64)


def predictor(rank: int, bias: np.ndarray | float = 0.0) -> NeuronPredictor:
    rng = np.random.default_rng(rank)
    fc1, fc2 = (rng.standard_normal(shape).astype(np.float32) for shape in ((rank, HIDDEN), (NEURONS, rank)))
    return NeuronPredictor(fc1, fc2, np.full(NEURONS, bias, np.float32))


def constant(on: np.ndarray) -> dict[int, NeuronPredictor]:
    """Predictors of both layers by which these neurons (bool [NEURONS]) alone are on."""
    return {layer: predictor(rank, np.where(on, 1e9, -1e9)) for layer, rank in enumerate((1, 20))}


def decode(down: float = 0.0) -> np.ndarray:
    """Logits of TOKENS. `down`: its threshold."""
    model = llama()
    model.reset()
    model.thresholds[:] = 0
    model.thresholds[:, 3] = down
    return np.stack([model.decode(token).copy() for token in TOKENS])


def reference(predictors: dict[int, NeuronPredictor]) -> tuple[np.ndarray, np.ndarray]:
    """Logits in f64 on the factors as Q8_0 has them, and which neurons were predicted, bool [layers, tokens, neurons];
    a layer without predictor is dense.
    """
    rounded = {}
    for layer, guess in predictors.items():
        parts = factor_blocks(guess, 32)
        rounded[layer] = [q8_0.dequantize(b.reshape(-1, 34)).reshape(len(b), -1).astype(np.float64) for b in parts]
    kept = np.ones((2, len(TOKENS), NEURONS), bool)

    def mask(layer: int, site: str, x: np.ndarray) -> np.ndarray:
        if layer in rounded and site == "gate_up":
            fc1, fc2 = rounded[layer]
            kept[layer] = (x @ fc1.T) @ fc2.T + predictors[layer].bias > 0
        return np.where(kept[layer], x, 0) if site == "down" else x

    weights = {name: values.astype(np.float64) for name, values in dict(container().weights()).items()}
    return Reference(CONFIG, weights).logits(TOKENS, mask=mask), kept


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_every_neuron_on_is_dense() -> None:
    """Bit for bit: down adds up the same inputs in the same order."""
    llama().set_predictors(None)
    dense = decode(down=1e-37)
    llama().set_predictors(constant(np.full(NEURONS, True)))
    np.testing.assert_array_equal(decode(), dense)
    np.testing.assert_array_equal(llama().neurons[:, 0], NEURONS)
    assert (llama().neurons[:, 1] < NEURONS).all()


@pytest.mark.parametrize("count", [0, 1, 5, NEURONS])
def test_executors_agree(count: int) -> None:
    """And with masked prefill, and float64, and themselves once more. False positives change nothing: PARALLEL has all
    of them.
    """
    on = np.random.default_rng(count).permutation(NEURONS) < count
    predictors = constant(on)
    llama().set_predictors(predictors)
    sequential = decode()
    assert (llama().neurons[:, 0] == count).all()
    assert_close(sequential, reference(predictors)[0])
    np.testing.assert_array_equal(decode(), sequential)
    llama().set_predictors(predictors, Executor.PARALLEL)
    np.testing.assert_array_equal(decode(), sequential)
    assert (llama().neurons == count).all()
    llama().reset()
    assert_close(llama().prefill(TOKENS, logits="all", masked=True), sequential)


def test_predictions_are_those_of_the_factors() -> None:
    """Of a decoded token and of a prompt's, against float64."""
    model, predictors = llama(), {0: predictor(20), 1: predictor(1)}
    model.set_predictors(predictors)
    expected, kept = reference(predictors)
    assert_close(decode(), expected)
    np.testing.assert_array_equal(model.neurons[:, 0], kept[:, -1].sum(axis=1))
    assert (model.neurons[:, 1] <= model.neurons[:, 0]).all()
    model.reset()
    assert_close(model.prefill(TOKENS, logits="all", masked=True), expected)


def test_a_layer_without_predictor_runs_whole() -> None:
    """And what tokens in one run read is added up."""
    model, guess = llama(), {1: predictor(20)}
    model.set_predictors(guess)
    expected, kept = reference(guess)
    assert_close(decode(), expected)
    assert model.neurons.tolist()[0] == [0, 0]
    assert model.neurons[1, 0] == kept[1, -1].sum()


def test_traffic_counts_rows_and_predictor() -> None:
    model = llama()
    model.set_predictors(None)
    decode(down=1e-37)
    dense = model.traffic.bytes_per_token(model.active)
    skipped = model.active[:, 3].sum()
    model.set_predictors(constant(np.arange(NEURONS) < 16), "parallel")
    decode()
    saved = dense - model.traffic.bytes_per_token(model.active)
    rows = model.traffic.columns[:, 2].sum() * HIDDEN * (1 - 16 / NEURONS)
    skipped = (skipped - model.active[:, 3].sum()) * model.traffic.columns[0, 3]
    assert saved == pytest.approx(rows + skipped - model.predictor_bytes.sum())
