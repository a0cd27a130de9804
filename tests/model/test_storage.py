"""Models whose matrices are stored in other schemes and layouts, against float64 on the same dequantised weights.

Tolerances are those of test_runner.py. By default only Q4_K multiplies in 16 bits: an error of 5e-5 per product there
(allowed: 1e-3 of the largest logit), f32 rounding elsewhere.
"""

from __future__ import annotations

import functools
from typing import Any

import llama_float64
import numpy as np
import pytest
import tiny_containers
import tiny_models

from spqt_ti.convert.quantize import quantize
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES

TOKENS = [0, 17, 203, 5, 5, 299, 42, 150, 3, 88, 261, 7, 19, 33, 250, 121, 64, 90, 2, 11]
# (scheme, layout). Few, and models shared, because the kernels of each take 10 s to compile.
STORAGES = [
    ("q8_0,down=q6_k", "zigzag"),
    ("q4_k,down=q6_k,head=q6_k", "zigzag"),
    ("q4_k,down=q8_0,head=q6_k", "row,head=row"),
    ("q6_k,gate_up=q5_k,o=q2_k,head=q4_k", "zigzag,gate_up=row,down=row"),
]
# The last one compiles four kinds of product: a minute.
CASES = [*STORAGES[:3], pytest.param(STORAGES[3], marks=pytest.mark.slow)]
stored = pytest.mark.parametrize("storage", CASES, ids=str)


@functools.cache
def model_of(storage: tuple[str, str], exact: bool, **changes: Any) -> tuple[Llama, dict[str, np.ndarray]]:
    """The runner, and the weights that it computes with."""
    scheme, layout = storage
    config = tiny_models.tiny_config(**changes)
    folder = tiny_containers.folder() / f"{scheme}-{layout}-{len(changes)}"
    if not folder.exists():
        source = folder.with_name(folder.name + "-source")
        tiny_models.write_huggingface(source, config, tiny_models.random_weights(config))
        quantize(source, folder, layout=layout, scheme=scheme, progress=False)
    container = tiny_containers.Container.open(folder)
    return Llama(container, threads=tiny_containers.THREADS, context=64, exact=exact), dict(container.weights())


def decode_all(model: Llama) -> np.ndarray:
    model.reset()
    return np.stack([model.decode(token).copy() for token in TOKENS])


def sparse(model: Llama) -> llama_float64.Mask:
    """Thresholds between the model's inputs, one site weighted; what they leave of an input."""
    rng = np.random.default_rng(0)
    model.selectors.clear()
    model.thresholds[:] = [[0.31, 0.11, 0.32, 0.07], [0.33, 0.12, 0.3, 0.06]]
    model.selectors.weigh(1, "down", rng.uniform(0.5, 2, model.inputs()[3]).astype(np.float32))
    return lambda layer, site, x: model.selectors.masked(layer, SITES.index(site), x)


def assert_close(got: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@stored
def test_dense(storage: tuple[str, str]) -> None:
    model, weights = model_of(storage, True)
    model.selectors.clear()
    expected = llama_float64.forward(model.config, weights, TOKENS)
    assert_close(decode_all(model), expected)
    assert model.best_token() == int(np.argmax(model._decode.logits()))
    model.reset()
    assert_close(model.prefill(TOKENS, logits="all"), expected)


def test_a_head_of_several_panels() -> None:
    """The workers share a head's panels, of which a small vocabulary has but one."""
    model, weights = model_of(STORAGES[1], True, vocab_size=9236)
    model.selectors.clear()
    assert_close(decode_all(model), llama_float64.forward(model.config, weights, TOKENS))


@pytest.mark.parametrize("storage", [CASES[1], CASES[3]], ids=str)
def test_by_default(storage: tuple[str, str]) -> None:
    model, weights = model_of(storage, False)
    model.selectors.clear()
    expected = llama_float64.forward(model.config, weights, TOKENS)
    assert_close(decode_all(model), expected, 1e-3)


@stored
def test_sparse(storage: tuple[str, str]) -> None:
    """Rows are read whole, with zeros for what is to be skipped: the same results."""
    model, weights = model_of(storage, True)
    mask = sparse(model)
    expected = llama_float64.forward(model.config, weights, TOKENS, mask)
    decoded = decode_all(model)
    assert_close(decoded, expected)
    read = model.active == model.inputs()
    matrices = [[matrix.kind.rows for matrix in layer] for layer in model._decode._weights.map.matrices.sites]
    np.testing.assert_array_equal(read, matrices)
    model.reset()
    assert_close(model.prefill(TOKENS, logits="all", masked=True), expected)


def test_a_head_of_its_own_unties() -> None:
    model, weights = model_of(("q4_k,head=q6_k", "zigzag"), True, tie_word_embeddings=True)
    expected = llama_float64.forward(model.config, weights, TOKENS)
    assert_close(decode_all(model), expected)


def test_bytes_per_token() -> None:
    """Padding included: a last band of Q6_K is completed to 256 rows of 224 bytes, a row to whole superblocks."""
    model, _ = model_of(STORAGES[1], True)
    assert model.traffic.columns[0].tolist() == [2 * 144, 144, 144 + 48, 224]
    assert model.traffic.head == 192 * 2 * 224
    model, _ = model_of(STORAGES[2], True)
    assert model.traffic.columns[1, 3] * 160 == 192 * (256 + 16)
    assert model.traffic.head == 320 * 224
