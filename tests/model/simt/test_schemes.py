"""Models that mix schemes and layouts on GPUs, against the float64 forward pass on the same dequantised weights.

Two models hold every scheme at a site and both layouts of sites and of a head that is not tiles.
"""

from __future__ import annotations

import functools

import llama_float64
import numpy as np
import pytest
import tiny_containers
import tiny_models

from spqt_ti.container import Container
from spqt_ti.errors import ContainerError
from spqt_ti.model.runner import Llama
from spqt_ti.model.simt.weights import WeightMap, traffic
from spqt_ti.model.sites import SITES

pytestmark = pytest.mark.threadgroups

TOLERANCE = 1e-5  # of the largest logit, as in test_runner
TOKENS = [0, 17, 203, 5, 299]
STORAGE = {  # name -> scheme, layout
    "zigzag": ("q8_0,o=q6_k,down=q4_k,head=q6_k", "zigzag"),
    "row": ("q6_k,gate_up=q4_k,down=q8_0,head=q4_k", "row,o=zigzag,head=row"),
}


@pytest.fixture(params=STORAGE)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@functools.cache
def container(name: str) -> Container:
    config = tiny_models.tiny_config()
    folder = tiny_containers.folder() / f"schemes-{name}"
    weights = tiny_models.random_weights(config)
    source = tiny_models.write_huggingface(folder / "source", config, weights)
    scheme, layout = STORAGE[name]
    return tiny_containers.quantize(source, folder / "quantised", layout, scheme)


@functools.cache
def model(name: str) -> Llama:
    return Llama(container(name), context=64)


def thresholds_and_logits(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per layer and site the middle of the widest gap near the median of |x|, where no input is within rounding of it;
    logits f64 [tokens, vocabulary], and numbers of active inputs [tokens, layers, 4].
    """
    thresholds = np.zeros((2, len(SITES)), np.float32)
    active = np.zeros((len(TOKENS), 2, len(SITES)), int)

    def mask(layer: int, site: str, x: np.ndarray) -> np.ndarray:
        place, ordered = (layer, SITES.index(site)), np.sort(np.abs(x), axis=None)
        near = slice(ordered.size // 2 - 40, ordered.size // 2 + 40)
        widest = near.start + int(np.argmax(np.diff(ordered[near])))
        thresholds[place] = (ordered[widest] + ordered[widest + 1]) / 2
        kept = np.abs(x) > thresholds[place]
        active[:, layer, place[1]] = kept.sum(axis=1)
        return np.where(kept, x, 0)

    stored = container(name)
    logits = llama_float64.forward(stored.config, dict(stored.weights()), TOKENS, mask)
    return thresholds, logits, active


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_dense(name: str) -> None:
    llama, stored = model(name), container(name)
    llama.reset()
    llama.selectors.clear()
    expected = llama_float64.forward(stored.config, dict(stored.weights()), TOKENS)
    assert_close(llama.prefill(TOKENS[:3], logits="all"), expected[:3])
    for token, logits in zip(TOKENS[3:], expected[3:], strict=True):
        assert_close(llama.decode(token), logits)
        assert llama.best_token() == logits.argmax()


def test_sparse(name: str) -> None:
    """A site in row layout has the results of the others, though it reads every weight."""
    llama = model(name)
    thresholds, expected, active = thresholds_and_logits(name)
    llama.reset()
    llama.selectors.clear()
    llama.thresholds[:] = thresholds
    for position, token in enumerate(TOKENS):
        assert_close(llama.decode(token), expected[position])
        np.testing.assert_array_equal(llama.active, active[position])
    llama.reset()
    assert_close(llama.prefill(TOKENS, logits="all", masked=True), expected)


def test_traffic() -> None:
    """Of a row-layout matrix a token reads all, of others its active columns."""
    none = np.zeros((2, 4), int)
    for name in STORAGE:
        stored, llama = container(name), model(name)
        whole = [matrix for matrix in (*stored.layer_matrices(), stored.head) if matrix.layout == "row"]
        head = stored.head.nbytes if stored.head.layout == "zigzag" else 0
        read = llama.traffic.bytes_per_token(none)
        least = sum(matrix.nbytes for matrix in whole) + head
        assert least <= read <= 1.5 * least  # rows are completed to 256 columns
        every_input = np.tile(llama.inputs(), (2, 1))
        assert llama.traffic.bytes_per_token(every_input) >= sum(m.nbytes for m in stored.layer_matrices()) + head
    assert traffic(stored.config).bytes_per_token(none) == WeightMap.of(stored.config).traffic().head


def test_layers_must_be_alike() -> None:
    stored = container("zigzag")
    other = stored.matrices["model.layers.0.self_attn.o_proj"]
    matrices = {**stored.matrices, "model.layers.1.mlp.down_proj": other}
    with pytest.raises(ContainerError, match=r"is stored as q6_k, zigzag and .* as q4_k, zigzag: GPUs run one scheme"):
        WeightMap.of(stored.config, matrices)
    with pytest.raises(ContainerError, match="only Q8_0 rows can be embedded"):
        WeightMap.of(stored.config, {**stored.matrices, "model.embed_tokens": other})
