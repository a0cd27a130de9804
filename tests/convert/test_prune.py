"""Pruned models: what is removed, what the rest is refitted to, and what runs is what was made."""

from collections.abc import Sequence
from pathlib import Path

import llama_float64
import numpy as np
import pytest
import tiny_models

from spqt_ti import quantization
from spqt_ti.container import Source
from spqt_ti.convert.identity import files_of
from spqt_ti.convert.plan import PruningPlan
from spqt_ti.convert.prune import (
    DAMPING,
    MODES,
    Pruner,
    importance,
    kept_width,
    pruned_checkpoint,
    refitted,
    without_least,
)
from spqt_ti.convert.quantize import open_source
from spqt_ti.errors import AllocationError, PolicyError, QuantizationError
from spqt_ti.model.reference import Reference
from spqt_ti.model.sites import Site
from spqt_ti.sources.checkpoint import Checkpoint
from spqt_ti.texts import check_disjoint

RATES = (0.4, 0.0)
WINDOWS = np.random.default_rng(0).integers(0, 320, (3, 40)).tolist()
TEXT = "\n\n".join(f"Paragraph {i} says what no other paragraph here says: {i * 7919}." for i in range(30))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_models.tiny_config(mlp_bias=True)
    path = tmp_path_factory.mktemp("prune") / "tiny"
    return tiny_models.write_huggingface(path, config, tiny_models.random_weights(config))


@pytest.fixture
def source(folder: Path) -> Checkpoint:
    return open_source(folder)


def weights(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {name: checkpoint.read(name) for name in checkpoint.names()}


def down_inputs(checkpoint: Checkpoint, layer: int = 0) -> np.ndarray:
    """f64 [tokens, channels] over the windows."""
    seen: list[np.ndarray] = []

    def mask(at: int, site: str, x: np.ndarray) -> np.ndarray:
        if (at, site) == (layer, "down"):
            seen.append(x)
        return x

    for window in WINDOWS:
        llama_float64.forward(checkpoint.config, weights(checkpoint), window, mask)
    return np.concatenate(seen)


@pytest.mark.parametrize(
    ("width", "rate", "kept"),
    [(1536, 0.0, 1536), (1536, 0.01, 1536), (1536, 0.011, 1504), (160, 0.4, 96), (64, 0.99, 32)],
)
def test_widths_are_multiples_of_32(width, rate, kept) -> None:
    assert kept_width(width, rate) == kept


def test_channels_of_least_importance_go(source) -> None:
    pruner = Pruner(source, RATES, WINDOWS, "channels")
    made, before = weights(pruned_checkpoint(source, pruner)), weights(source)
    x, down = down_inputs(source), before["model.layers.0.mlp.down_proj.weight"]
    order = np.argsort(np.linalg.norm(down, axis=0) * np.linalg.norm(x, axis=0))
    kept = np.sort(order[64:])
    np.testing.assert_array_equal(pruner.kept(0), kept)
    assert pruner.config.widths() == (96, 160)
    for name, values in made.items():
        expected = before[name]
        if ".0.mlp." in name and "down" not in name:
            expected = expected[kept]
        elif name.endswith("0.mlp.down_proj.weight"):
            expected = expected[:, kept]
        np.testing.assert_array_equal(values, expected, err_msg=name)
    scores = np.linalg.norm(down, axis=0) * np.linalg.norm(x, axis=0)
    np.testing.assert_allclose(importance(down, np.square(x).sum(axis=0)), scores, rtol=1e-5)


def test_refitting_is_least_squares(source) -> None:
    made = weights(pruned_checkpoint(source, pruner := Pruner(source, RATES, WINDOWS, "compensated")))
    x, kept = down_inputs(source), pruner.kept(0)
    down = weights(source)["model.layers.0.mlp.down_proj.weight"]
    moments = x.T @ x
    penalty = np.sqrt(DAMPING * np.diag(moments).mean()) * np.eye(len(kept))
    inputs = np.concatenate([x[:, kept], penalty])
    outputs = np.concatenate([x @ down.T, penalty @ down[:, kept].T])
    expected = np.linalg.lstsq(inputs, outputs, rcond=None)[0].T
    found = made["model.layers.0.mlp.down_proj.weight"]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    errors = [np.square(x[:, kept] @ w.T - x @ down.T).sum() for w in (found, down[:, kept])]
    assert errors[0] < 0.9 * errors[1]
    every = np.arange(down.shape[1])
    np.testing.assert_array_equal(refitted(down, every, moments), down)


def test_single_weights(source) -> None:
    """The share asked for is zero in each row of every matrix of the layer, and stays what it was elsewhere."""
    made, before = weights(pruned_checkpoint(source, Pruner(source, RATES, WINDOWS, "weights"))), weights(source)
    x = np.linalg.norm(down_inputs(source), axis=0)
    for name, values in made.items():
        if ".layers.0." in name and values.ndim == 2:
            assert (np.count_nonzero(values == 0, axis=1) == round(0.4 * values.shape[1])).all()
            np.testing.assert_array_equal(values[values != 0], before[name][values != 0])
        else:
            np.testing.assert_array_equal(values, before[name], err_msg=name)
    down = before["model.layers.0.mlp.down_proj.weight"]
    np.testing.assert_array_equal(made["model.layers.0.mlp.down_proj.weight"], without_least(down, x, 0.4))


@pytest.mark.parametrize("mode", MODES)
def test_any_order_of_reading(source, mode) -> None:
    rates = (0.3, 0.5)
    first = pruned_checkpoint(source, Pruner(source, rates, WINDOWS, mode))
    second = pruned_checkpoint(source, Pruner(source, rates, WINDOWS, mode))
    backwards = {name: second.read(name) for name in reversed(second.names())}
    for name, values in weights(first).items():
        np.testing.assert_array_equal(values, backwards[name], err_msg=name)


def quantised(folder: Path, to: Path, monkeypatch: pytest.MonkeyPatch, windows: Sequence = WINDOWS, **options):
    monkeypatch.setattr(quantization, "_windows", lambda *_: windows)
    return quantization.quantize_calibrated(folder, to, text=TEXT, progress=False, **{"scheme": "q8_0", **options})


def test_container(folder, tmp_path, monkeypatch) -> None:
    """Pruned, rotated and quantised by GPTQ: near to the pruned source, smaller, and all of it is on record."""
    checkpoint = open_source(folder)
    details = {"mode": "corrected", "calibration": {"text_sha256": "00", "paragraphs": []}}
    plan = PruningPlan(RATES, Source("", files_of(folder)).sha256, details)
    made = quantised(folder, tmp_path / "a", monkeypatch, plan=plan, rotate=["residual"])
    assert [one["kind"] for one in made.transformations] == ["allocation", "pruning", "rotation", "gptq"]
    assert made.transformations[1]["widths"] == [96, 160]
    assert made.config.widths() == (96, 160)
    assert made.matrices["model.layers.0.mlp.gate_up_proj"].rows == 192
    with pytest.raises(PolicyError, match="is the text"):
        check_disjoint(TEXT, made.transformations[1])
    pruned = pruned_checkpoint(checkpoint, Pruner(checkpoint, RATES, WINDOWS))
    expected = llama_float64.forward(pruned.config, weights(pruned), WINDOWS[0])
    found = Reference(made.config, dict(made.weights())).logits(WINDOWS[0])
    assert np.abs(found - expected).std() < 0.05 * expected.std()


@pytest.mark.parametrize("scheme", ["q8_0", "q6_k", "q3_k"])
def test_zeros_stay(folder, tmp_path, monkeypatch, scheme) -> None:
    """Rounded to a format whose values lie on both sides of 0, pruned weights are 0 in the container."""
    made = quantised(folder, tmp_path / "a", monkeypatch, method="rtn", plan=0.4, pruning="weights", scheme=scheme)
    for layer in range(2):
        for site in Site:
            w = made.dequantize(made.matrix(layer, site))
            assert (np.count_nonzero(w == 0, axis=1) >= round(0.4 * w.shape[1])).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"plan": PruningPlan(RATES, "ab" * 32)}, AllocationError, "made for the source"),
        ({"plan": PruningPlan((0.1,) * 3)}, AllocationError, "3 layers, the model has 2"),
        ({"plan": 1.0}, AllocationError, "rate of layer 0 is 1"),
        ({"plan": PruningPlan((0.1, np.nan))}, AllocationError, "rate of layer 1 is nan"),
        ({"plan": 0.1, "pruning": "rows"}, QuantizationError, "unknown mode of pruning 'rows'"),
        ({"plan": 0.1, "pruning": "weights"}, QuantizationError, "GPTQ changes the weights"),
        ({"plan": 0.1, "rotate": ["rows"]}, QuantizationError, "unknown rotation 'rows'"),
        ({"method": "awq"}, QuantizationError, "unknown method 'awq'"),
    ],
)
def test_refuses_before_any_work(folder, tmp_path, monkeypatch, options, error, message) -> None:
    """No token is drawn, and nothing is written."""
    monkeypatch.setattr(quantization, "_windows", None)
    with pytest.raises(error, match=message):
        quantization.quantize_calibrated(folder, tmp_path / "a", text=TEXT, progress=False, **options)
    assert not list(tmp_path.iterdir())
