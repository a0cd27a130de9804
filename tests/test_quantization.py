"""GPTQ of a model: the same file for the same seed, nearer to the source, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import tiny_models

from spqt_ti.container import Container
from spqt_ti.convert.gptq_model import GptqQuantizer
from spqt_ti.convert.quantize import open_source, quantize
from spqt_ti.errors import PolicyError, QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.generation.windows import sampled_windows, text_windows
from spqt_ti.model.reference import Reference
from spqt_ti.model.runner import Llama
from spqt_ti.quantization import quantize_calibrated
from spqt_ti.texts import check_disjoint

TEXT = "\n\n".join(f"Paragraph {i} says something that no other paragraph says, {i * 7919} times." for i in range(200))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_models.tiny_config()
    return tiny_models.write_huggingface(
        tmp_path_factory.mktemp("source") / "tiny", config, tiny_models.random_weights(config)
    )


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Container:
    return quantize_calibrated(source, tmp_path_factory.mktemp("out") / "gptq", text=TEXT, tokens=2048, progress=False)


def logits_of(container: Container, tokens: list[int]) -> np.ndarray:
    return Reference(container.config, dict(container.weights())).logits(tokens)


def test_is_nearer_to_the_source_than_rounding(source: Path, made: Container, tmp_path: Path) -> None:
    """On tokens that it was not calibrated on."""
    checkpoint, rounded = open_source(source), quantize(source, tmp_path / "rtn", progress=False)
    tokens = np.random.default_rng(5).integers(0, checkpoint.config.vocab_size, 200).tolist()
    wanted = Reference(checkpoint.config, {name: checkpoint.read(name) for name in checkpoint.names()}).logits(tokens)
    errors = [float(np.square(logits_of(c, tokens) - wanted).mean()) for c in (made, rounded)]
    assert errors[0] < 0.95 * errors[1]


def test_the_same_seed_makes_the_same_file(source: Path, made: Container, tmp_path: Path) -> None:
    again = quantize_calibrated(source, tmp_path / "again", text=TEXT, tokens=2048, progress=False)
    assert again.fingerprint == made.fingerprint


def test_says_what_was_done(made: Container) -> None:
    (record,) = made.transformations
    assert (record["kind"], record["tokens"], record["damping"], record["seed"]) == ("gptq", 2048, 0.02, 0)
    with pytest.raises(PolicyError, match="is the text that the model was quantised with"):
        check_disjoint(TEXT, record, "the model was quantised with")


def test_matrices_but_those_of_layers_are_rounded(source: Path, made: Container, tmp_path: Path) -> None:
    rounded = quantize(source, tmp_path / "rtn", progress=False)
    for info in made.matrices.values():
        same = np.array_equal(made.read_matrix(info), rounded.read_matrix(info))
        assert same == (info.name in ("model.embed_tokens", "lm_head"))


def test_refusals(source: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="calibration tokens or more are needed, not 5"):
        quantize_calibrated(source, tmp_path / "few", tokens=5)
    with pytest.raises(QuantizationError, match="Q4_K and Q5_K, not Q6_K"):
        quantize_calibrated(
            source, tmp_path / "row", layout="row", scheme="q6_k", text=TEXT, tokens=2048, progress=False
        )
    assert not list(tmp_path.iterdir())
    checkpoint = open_source(source)
    for windows in ([], [[1, 2], [3]], [[]]):
        with pytest.raises(QuantizationError, match="windows of tokens of the same length"):
            GptqQuantizer(checkpoint, windows)


def test_h_is_that_of_the_inputs(source: Path) -> None:
    """Of all sites of both layers, in float64, in batches or not."""
    checkpoint = open_source(source)
    config = checkpoint.config
    windows = np.random.default_rng(0).integers(0, config.vocab_size, (5, 600)).tolist()
    quantizer = GptqQuantizer(checkpoint, windows)
    weights = {name: checkpoint.read(name).astype(np.float64) for name in checkpoint.names()}
    states = weights["model.embed_tokens.weight"][np.asarray(windows)]
    for layer in Reference(config, weights).layers:
        quantizer._enter(layer.index)
        trace = layer.run(states, lambda site, x: x)
        for site, h in quantizer._hessians.items():
            x = trace.inputs[site.label].reshape(5 * 600, -1)
            np.testing.assert_allclose(h, x.T @ x / len(x), rtol=1e-3, atol=1e-5 * np.abs(h).max())
        states = trace.output


def test_windows() -> None:
    assert text_windows(list(range(10)), 4, 5, None) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert text_windows(list(range(10)), 4, 2, 99) == [[99, 0, 1, 2], [99, 3, 4, 5]]
    assert text_windows([1, 2], 4, 5, None) == []


def test_drawn_windows_repeat(made: Container) -> None:
    llama = Llama(made, context=32)
    first = sampled_windows(llama, 16, 3, 7, seed=1)
    assert [len(window) for window in first] == [16] * 3
    assert {window[0] for window in first} == {7}
    assert first[0] != first[1]
    assert sampled_windows(llama, 16, 3, 7, seed=1) == first


def test_bytes_are_those_of_the_layout(made: Container) -> None:
    for info in made.matrices.values():
        assert made.read_matrix(info).size == layouts.nbytes(info.rows, info.cols, info.layout, info.scheme)
