"""Numbers that are not finite: noticed in every way through the model, with the layer, and gone afterwards.

Keys and values above 65504 overflow the f16 cache; an output above 3.4e38 overflows f32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import tiny_containers
import tiny_models
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from spqt_ti.backend import requested
from spqt_ti.container import Container
from spqt_ti.errors import GenerationError
from spqt_ti.generation.loop import generate_tokens
from spqt_ti.generation.sampling import Sampling
from spqt_ti.model.faults import CacheFault, all_finite, explain, first_fault
from spqt_ti.model.runner import Llama

pytestmark = pytest.mark.any_backend

TOKENS = [5, 17, 203, 42, 150, 3, 88]
INF, NAN = float("inf"), float("nan")


@given(
    arrays.arrays(
        st.sampled_from([np.float16, np.float32]),
        arrays.array_shapes(max_dims=3, max_side=7),
        elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 65504.0, -65504.0, INF, -INF, NAN, -NAN, 6e-8]),
        fill=st.just(0.5),
    )
)
def test_all_finite_is_numpys(values) -> None:
    assert all_finite(values) == np.isfinite(values).all()
    assert all_finite(values[..., ::2]) == np.isfinite(values[..., ::2]).all()


@pytest.mark.parametrize("value", [INF, -INF, NAN, -NAN])
def test_the_first_faulty_layer(value) -> None:
    layers = np.zeros((4, 2, 3), np.float32)
    layers[3] = NAN
    layers[2, 1, 1] = value
    assert first_fault(layers) == CacheFault(2, infinite=not np.isnan(value))
    assert first_fault(layers[:2]) is None


@pytest.mark.parametrize(
    ("fault", "half", "sparse", "said"),
    [
        (CacheFault(3, True), True, True, "keys or values of layer 3 are above 65504"),
        (CacheFault(3, True), True, False, "load the model with exact=True (--exact)"),
        (CacheFault(3, True), False, False, "keys or values of layer 3 overflow f32; the weights"),
        (CacheFault(3, False), True, False, "the output of layer 2 overflows f32"),
        (CacheFault(0, False), True, False, "the input of layer 0 overflows f32"),
        (None, True, False, "the output of layer 7 or the head overflows f32"),
        (None, True, True, "the output of a layer or the head overflows f32 (without sparsity"),
    ],
)
def test_messages(fault, half, sparse, said) -> None:
    assert said in explain(fault, half, sparse, layers=8)


# Models that overflow -------------------------------------------------------------------------------------------------


def _large_values(weights: dict[str, np.ndarray]) -> None:
    """Values of layer 1 are far above 65504; its output is scaled down again."""
    weights["model.layers.1.self_attn.v_proj.weight"] *= 1e6
    weights["model.layers.1.self_attn.o_proj.weight"] *= 1e-6


def _large_keys(weights: dict[str, np.ndarray]) -> None:
    """Keys of layer 1 are above 65504, queries so small that f32 has no trouble with their products."""
    weights["model.layers.1.self_attn.k_proj.weight"] *= 1e6
    weights["model.layers.1.self_attn.q_proj.weight"] *= 1e-6


def _large_output(weights: dict[str, np.ndarray]) -> None:
    """What layer 0 adds is beyond f32."""
    weights["model.layers.0.mlp.down_proj.weight"] *= 1e4  # Q4_K has f16 scales
    weights["model.layers.0.post_attention_layernorm.weight"] *= 1e19


def _large_logits(weights: dict[str, np.ndarray]) -> None:
    """The products of the head are beyond f32."""
    weights["model.norm.weight"][:] = 1e38


CASES: dict[str, tuple[Callable[[dict[str, np.ndarray]], None], str]] = {
    "values": (_large_values, "keys or values of layer 1 are above 65504"),
    "keys": (_large_keys, "keys or values of layer 1 are above 65504"),
    "output": (_large_output, r"the output of (layer 0|a layer or the head) overflows f32"),
    "logits": (_large_logits, r"(layer 1|a layer) or the head overflows f32"),
}
EXACT = requested() != "cpu"  # GPUs have an f32 cache


@functools.cache
def runner(case: str, exact: bool) -> Llama:
    config = tiny_models.tiny_config(eos_token_ids=())
    weights = tiny_models.random_weights(config)
    CASES[case][0](weights)
    folder = tiny_containers.folder() / f"fault-{case}"
    if not folder.exists():
        source = tiny_models.write_huggingface(folder / "source", config, weights)
        tiny_containers.quantize(source, folder / "quantized")
    return Llama(Container.open(folder / "quantized"), threads=tiny_containers.THREADS, context=64, exact=exact)


def decode_all(llama: Llama) -> None:
    for token in TOKENS:
        llama.decode(token)


def greedy(llama: Llama) -> None:
    llama.decode_greedy(TOKENS[0], 5)


def draw(llama: Llama) -> None:
    list(generate_tokens(llama, TOKENS[:1], 8, Sampling(1.0), [].__contains__))


WAYS: dict[str, Callable[[Llama], object]] = {
    "prefill": lambda llama: llama.prefill(TOKENS),
    "all": lambda llama: llama.prefill(TOKENS, "all"),
    "masked": lambda llama: llama.prefill(TOKENS, "all", masked=True),
    "decode": decode_all,
    "greedy": greedy,
    "drawn": draw,
}


@pytest.mark.parametrize("threshold", [0.0, 1e-3], ids=["dense", "sparse"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_what_overflows_is_noticed(case: str, way: str, threshold: float) -> None:
    if EXACT and case in ("values", "keys"):
        pytest.skip("the cache is f32 on GPUs")
    llama = runner(case, EXACT)
    llama.reset()
    llama.thresholds[:] = threshold
    try:
        with pytest.raises(GenerationError, match=CASES[case][1]):
            WAYS[way](llama)
    finally:
        llama.thresholds[:] = 0
    assert llama.position == 0
    assert llama._cache.fault(0, llama.context) is None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ["values", "keys"])
def test_an_exact_cache_holds_what_f16_does_not(case: str, way: str) -> None:
    llama = runner(case, exact=True)
    llama.reset()
    WAYS[way](llama)
    llama.reset()
    prefilled = llama.prefill(TOKENS, "all")
    llama.reset()
    decoded = np.stack([llama.decode(token).copy() for token in TOKENS])
    np.testing.assert_allclose(decoded, prefilled, atol=1e-4 * np.abs(prefilled).max())


def test_keys_alone_are_noticed_when_nothing_else_is_asked() -> None:
    if EXACT:
        pytest.skip("the cache is f32 on GPUs")
    llama = runner("keys", exact=False)
    with pytest.raises(GenerationError, match="layer 1"):
        llama.prefill(TOKENS, "none")
