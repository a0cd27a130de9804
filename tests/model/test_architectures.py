"""Every architecture against transformers in float64 on the same dequantised weights: decode and masked prefill, dense
and sparse, in f32 and in 16 bits, and windows that cross pages of the cache and chunks of prefill.

Tolerances are our own rounding: 1e-5 of the largest logit in f32 (measured: at most 2e-6), 1e-3 in 16 bits, where a
product errs by 5e-5 (measured: 1e-4).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import gap_thresholds
import llama_float64
import numpy as np
import pytest
import tiny_containers
import tiny_models

from spqt_ti.backend import requested
from spqt_ti.container import Container
from spqt_ti.model.architectures import ARCHITECTURES
from spqt_ti.model.engine import CHUNK
from spqt_ti.model.reference import PROJECTIONS
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[oracle]'")
transformers_models = pytest.importorskip("transformers_models")

pytestmark = pytest.mark.any_backend

TOKENS = [0, 17, 203, 5, 5, 299, 42, 150, 3, 88, 261, 7, 19, 33, 250, 121, 64, 90, 2, 11]
EXACT, IN_16_BITS = 1e-5, 1e-3  # of the largest logit
CASES = {"llama": "gqa"} | {name: name for name in ARCHITECTURES if name not in ("llama", "sparsellama")}
# Kernels are compiled for each: 8 s on the CPU, 20 s on lavapipe. Those that always run have every option between them,
# except the factor of what is added to the residual stream (Granite, MiniCPM).
_SLOW = {"granite", "minicpm", "smollm3"} if requested() == "cpu" else set(tiny_containers.ARCHITECTURES) - {"gemma2"}
architectures = pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=[pytest.mark.slow] * (name in _SLOW)) for name in CASES]
)


def model_of(architecture: str) -> str:
    """One of tiny_containers.MODELS."""
    return tiny_containers.model_with(CASES[architecture])


def expected_logits(container: Container, tokens: Sequence[int], thresholds: np.ndarray | None = None) -> np.ndarray:
    """f64 [tokens, vocab]. With `thresholds` [layers, 4] the projections of a site see only inputs above them."""
    model, row = transformers_models.of_container(container), container.config.architecture
    for layer, place in np.ndindex(*(thresholds.shape if thresholds is not None else (0, 0))):
        stack = {"qkv": ["self_attn.qkv_proj"], "gate_up": ["mlp.gate_up_proj"]} if row.fused else {}
        for projection in stack.get(SITES[place], PROJECTIONS[SITES[place]]):
            module = model.get_submodule(f"model.layers.{layer}.{projection}")
            module.register_forward_pre_hook(functools.partial(_mask, float(thresholds[layer, place])))
    with torch.no_grad():
        return model(torch.tensor([list(tokens)])).logits[0].double().numpy()


def _mask(threshold: float, module, inputs):
    (x,) = inputs
    return (torch.where(x.abs() > threshold, x, 0.0),)


def decoded(model: Llama, tokens: Sequence[int]) -> np.ndarray:
    return np.stack([model.decode(token).copy() for token in tokens])


def assert_close(got: np.ndarray, expected: np.ndarray, tolerance: float = EXACT) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def fresh(name: str, exact: bool = True) -> Llama:
    model = tiny_containers.llama(name, exact=exact)
    model.reset()
    model.selectors.clear()
    return model


@pytest.mark.parametrize("name", tiny_containers.ARCHITECTURES)
def test_reference(name: str) -> None:
    """In f32 transformers' frequencies of RoPE (measured: at most 3e-7 of the largest logit)."""
    container = tiny_containers.container(name)
    ours = llama_float64.forward(container.config, dict(container.weights()), TOKENS)
    assert_close(ours, expected_logits(container, TOKENS))


@architectures
def test_dense(architecture: str) -> None:
    name = model_of(architecture)
    assert tiny_containers.container(name).config.model_type == architecture
    expected, model = expected_logits(tiny_containers.container(name), TOKENS), fresh(name)
    assert_close(model.prefill(TOKENS, "all"), expected)
    model.reset()
    assert_close(decoded(model, TOKENS), expected)


@architectures
def test_final_states(architecture: str) -> None:
    """After the final norm, without the factor and the cap of logits, whatever the head makes of them."""
    name = model_of(architecture)
    theirs = transformers_models.of_container(tiny_containers.container(name))
    with torch.no_grad():
        expected = theirs.model(torch.tensor([TOKENS])).last_hidden_state[0].numpy()
    model = fresh(name)
    assert_close(np.concatenate([model.final_states(TOKENS[:9]), model.final_states(TOKENS[9:])]), expected)
    assert model.position == len(TOKENS)


@architectures
def test_sparse(architecture: str) -> None:
    """Half of the inputs skipped everywhere, with thresholds that no input lies near."""
    name, tokens = model_of(architecture), TOKENS[:8]
    model = fresh(name)
    assert gap_thresholds.open_thresholds(model, tokens) > 1e-5
    expected = expected_logits(tiny_containers.container(name), tokens, model.thresholds.copy())
    assert_close(model.prefill(tokens, "all", masked=True), expected)
    model.reset()
    for position, token in enumerate(tokens):
        assert_close(model.decode(token), expected[position])
        assert 0 < model.active.sum() < 0.7 * model.inputs().sum() * len(model.active)


@pytest.mark.parametrize("architecture", ["mistral", "qwen3"])  # each compiles for 12 s
def test_in_16_bits(architecture: str) -> None:
    """As the CPU runs by default: 16-bit products where it can, and a cache of f16."""
    name = model_of(architecture)
    if fresh(name).backend != "cpu":
        pytest.skip("GPUs compute in f32 throughout")
    expected, model = expected_logits(tiny_containers.container(name), TOKENS), fresh(name, exact=False)
    assert_close(decoded(model, TOKENS), expected, IN_16_BITS)
    model.reset()
    assert_close(model.prefill(TOKENS[:11], "all"), expected[:11], IN_16_BITS)
    assert_close(decoded(model, TOKENS[11:]), expected[11:], IN_16_BITS)


# Of a GPU only the one of several tiles: kernels are compiled for each model, which takes lavapipe most of a minute.
@pytest.mark.parametrize("window", [33, CHUNK - 6] if requested() == "cpu" else [CHUNK - 6])
def test_windows_across_pages_and_chunks(window: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The second chunk's windows begin in the first one, within a page of 16 positions; a layer without a window sees
    everything. Prompts end before and after a chunk's end.
    """
    kinds = ("full_attention", "sliding_attention")
    config = tiny_models.tiny_config(
        model_type="qwen2", max_position_embeddings=320, sliding_window=window, layer_types=kinds
    )
    folder = tmp_path_factory.mktemp("windows")
    source = tiny_models.write_huggingface(folder / "source", config, tiny_models.random_weights(config))
    container = tiny_containers.quantize(source, folder / "quantized")
    tokens = np.random.default_rng(window).integers(0, 320, CHUNK + 32).tolist()
    expected = expected_logits(container, tokens)
    model = Llama(container, threads=tiny_containers.THREADS, context=CHUNK + 32, exact=True)
    for cut in (CHUNK - 1, CHUNK + 20):
        model.reset()
        assert_close(model.prefill(tokens[:cut], "all"), expected[:cut])
        assert_close(decoded(model, tokens[cut : cut + 12]), expected[cut : cut + 12])
