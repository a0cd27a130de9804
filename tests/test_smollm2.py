"""The real model: what it writes, recorded, its logits against the float64 forward pass, and what calibrations of it
keep to.

Dense text is recorded exactly: the smallest margin between the two best logits is 0.1, a hundred times the rounding.
Sparse text is not robust in that way. A different rounding flips an input near its threshold, and in a few layers of a
deep model flips grow until logits differ by whole units. So sparse text is compared exactly where the arithmetic is the
recorded one (f32, on x86-64 with the native helpers), and elsewhere token by token on the recorded text.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import llama_float64
import needs
import numpy as np
import plain_generation
import pytest
import tiny_containers
from gap_thresholds import open_thresholds

import spqt_ti
from spqt_ti import api
from spqt_ti.backend import available_threads
from spqt_ti.container import Container
from spqt_ti.evaluation.perplexity import evaluate, windows
from spqt_ti.kernels.cpu import native
from spqt_ti.model.sites import SITES
from spqt_ti.sparsity import methods
from spqt_ti.sparsity.methods import uniform, wisparse
from spqt_ti.sparsity.search import alpha, greedy
from spqt_ti.sparsity.search.evolution import Search
from spqt_ti.sparsity.search.sample import embeddings, spread
from spqt_ti.sparsity.search.scores import quantiles, score, threshold_mask, thresholds_at
from spqt_ti.sparsity.search.stored_layer import StoredLayer, relative_error, unmasked

RECORDED = json.loads((Path(__file__).parent / "data" / "smollm2_greedy.json").read_text())


@pytest.fixture(scope="module")
def directory(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("smollm2") / "zigzag"
    tiny_containers.quantize(smollm2_gguf, directory)
    return directory


@pytest.fixture(scope="module")
def model(directory: Path) -> spqt_ti.Model:
    return spqt_ti.load(directory, threads=min(2, available_threads()), exact=True)


def test_a_process_of_its_own_makes_the_same(smollm2_gguf: Path, directory: Path, tmp_path: Path) -> None:
    """What a GPU's first use makes is the container of the CPU's, to which policies belong."""
    made = api.quantize_elsewhere(smollm2_gguf, tmp_path / "made")
    assert made.fingerprint == Container.open(directory).fingerprint


def apply(model: spqt_ti.Model, level: str) -> dict[str, Any]:
    """Set the sparsity of a recorded run; returns the run."""
    model.apply(model.calibrate().policy(float(level)) if float(level) else None)
    return RECORDED["runs"][level]


def arithmetic_is_the_recorded_one(model: spqt_ti.Model) -> bool:
    return native.available("x86_64") and model.llama.threads == 2


@pytest.mark.parametrize("level", RECORDED["runs"])
def test_greedy_text(model: spqt_ti.Model, level: str) -> None:
    run = apply(model, level)
    generation = model.generate(RECORDED["prompt"], max_new_tokens=64)
    if level == "0.0" or arithmetic_is_the_recorded_one(model):
        assert generation.token_ids == run["tokens"]
        assert generation.text == run["text"]
    else:
        assert generation.token_ids[:8] == run["tokens"][:8]
    assert generation.stats.decode_tokens == 63


@pytest.mark.any_backend
def test_first_tokens(model: spqt_ti.Model) -> None:
    model.apply(None)
    assert model.generate(RECORDED["prompt"], max_new_tokens=8).token_ids == RECORDED["runs"]["0.0"]["tokens"][:8]


@pytest.mark.parametrize("level", RECORDED["runs"])
def test_recorded_tokens_are_likely(model: spqt_ti.Model, level: str) -> None:
    """On the recorded text most tokens are the argmax, whatever the rounding: all of them dense, 3 of 4 at 40 %."""
    run = apply(model, level)
    llama, agreed = model.llama, 0
    llama.reset()
    logits = llama.prefill(model.tokenizer.encode(RECORDED["prompt"]))[0]
    for token in run["tokens"]:
        agreed += int(np.argmax(logits)) == token
        logits = llama.decode(token)
    assert agreed >= (64 if level == "0.0" else 48)


def test_sparsity_is_what_was_asked_for(model: spqt_ti.Model) -> None:
    """Thresholds come from another text, so the realised sparsity is only near the level."""
    apply(model, "0.4")
    stats = model.generate(RECORDED["prompt"], max_new_tokens=32).stats
    assert all(0.3 < share < 0.5 for share in stats.inputs_skipped.values())
    apply(model, "0.0")
    dense = model.generate(RECORDED["prompt"], max_new_tokens=4).stats
    assert 0.65 < stats.bytes_per_token / dense.bytes_per_token < 0.8  # the head is a third of the bytes


def test_logits(model: spqt_ti.Model) -> None:
    """Prefill and decode within 2e-3 of float64 (largest logit about 30; measured 1e-4 to 8e-4), same argmax."""
    apply(model, "0.0")
    tokens = model.tokenizer.encode("The capital of France is Paris.\n\ndef f(x):\n    return x + 1\n")
    expected = llama_float64.forward(model.container.config, dict(model.container.weights()), tokens)
    for mode in ("prefill", "decode"):
        got = model.logits(tokens, mode=mode)
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-3)
        np.testing.assert_array_equal(got.argmax(-1), expected.argmax(-1))


@needs.sixteen_bits
def test_logits_in_16_bits(model: spqt_ti.Model, directory: Path) -> None:
    """Decoding as it runs by default, where the CPU can, within 4e-2 of f32 (on natural text 9e-3, at most 3.4e-2)."""
    apply(model, "0.0")
    fast = spqt_ti.load(directory, threads=model.llama.threads)
    tokens = model.tokenizer.encode(RECORDED["prompt"])
    got, expected = fast.logits(tokens, mode="decode"), model.logits(tokens, mode="decode")
    np.testing.assert_allclose(got, expected, rtol=0, atol=4e-2)
    np.testing.assert_array_equal(got.argmax(-1), expected.argmax(-1))


def test_masked_evaluation_is_decoding(model: spqt_ti.Model) -> None:
    """About half of the inputs skipped, none of them within 3e-4 of its threshold: masked prefill, which evaluates, and
    the decode step give the same logits, to f32 rounding (as in test_logits).
    """
    tokens = model.tokenizer.encode(RECORDED["prompt"])
    assert open_thresholds(model.llama, tokens) > 3e-4
    masked = model.llama.prefill(tokens, "all", masked=True)
    decoded = model.logits(tokens, mode="decode")
    assert 0.4 < 1 - model.llama.active.sum() / (model.llama.inputs() * len(model.llama.active)).sum() < 0.6
    model.apply(None)
    np.testing.assert_allclose(masked, decoded, rtol=0, atol=2e-3)


def test_thresholds_leave_out_their_share(model: spqt_ti.Model) -> None:
    """On the text calibrated on, densely run, to a histogram's bin: at every layer and site, and more at higher
    levels.
    """
    tokens, calibration = model.tokenizer.encode(uniform.sample_text()), model.calibrate()
    levels = (0.1, 0.4, 0.9)
    thresholds = [calibration.policy(level).thresholds for level in levels]
    below, total = np.zeros((len(levels), *thresholds[0].shape)), np.zeros(thresholds[0].shape)

    def observe(layer: int, site: str, x: np.ndarray) -> None:
        place = layer, SITES.index(site)
        total[place] += x.size
        for i, t in enumerate(thresholds):
            below[i][place] += np.count_nonzero(np.abs(x) <= t[place])

    model.apply(None)
    for start in range(0, len(tokens), uniform.WINDOW):
        model.llama.reset()
        model.llama.prefill(tokens[start : start + uniform.WINDOW], "none", observer=observe)
    for share, level in zip(below / total, levels, strict=True):
        np.testing.assert_allclose(share, level, atol=4e-3)
    assert (np.diff(thresholds, axis=0) > 0).all()


@pytest.fixture(scope="module")
def layer_and_inputs(model: spqt_ti.Model) -> tuple[StoredLayer, np.ndarray]:
    """The first layer, with 2 windows of 64 tokens."""
    tokens = model.tokenizer.encode(uniform.sample_text())
    return StoredLayer.load(model.container, 0), embeddings(model.container, spread(tokens, 2, 64))


def test_greedy_picks(layer_and_inputs: tuple[StoredLayer, np.ndarray]) -> None:
    """Sparsity by the matrices' sizes, steps of 2 % to one site a time, none above 0.9; on the whole no worse than
    uniform.
    """
    stored, x = layer_and_inputs
    path, dense = greedy.allocate(stored, x), stored.run(x, unmasked)
    sizes = np.array([stored.matrices[site].size for site in SITES], float)
    np.testing.assert_allclose(path.effective, path.sparsities @ sizes / sizes.sum())
    assert (np.count_nonzero(np.diff(path.sparsities, axis=0), axis=1) == 1).all()
    assert (np.diff(path.effective) <= greedy.STEP + 1e-9).all()
    assert path.sparsities.max() <= greedy.MOST
    table = np.stack([quantiles(score(dense.inputs[site], None)) for site in SITES])
    rows = range(5, len(path.effective), 10)
    even = [threshold_mask(thresholds_at(table, np.full(len(SITES), path.effective[row]))) for row in rows]
    errors = [relative_error(stored.run(x, mask).output, dense.output) for mask in even]
    assert sum(path.errors[row] for row in rows) <= sum(errors)


def test_alphas(layer_and_inputs: tuple[StoredLayer, np.ndarray]) -> None:
    """What is chosen loses no more than TEAL's and WINA's scores."""
    found = alpha.search(*layer_and_inputs)
    chosen = found.losses.min(axis=1)
    np.testing.assert_array_equal(
        chosen, [row[alpha.ALPHAS.index(a)] for row, a in zip(found.losses, found.best, strict=True)]
    )
    assert (chosen <= np.minimum(found.losses[:, 0], found.losses[:, alpha.ALPHAS.index(1.0)])).all()


@pytest.mark.slow
def test_methods_on_held_out_text(model: spqt_ti.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrated on the first two thirds of a short text, at 50 %: TEAL diverges less than uniform on the last third,
    and WiSparse's budgets (of a short search) add up and cost no more than equal ones.
    """
    monkeypatch.setattr(wisparse, "WINDOWS", 2)
    monkeypatch.setattr(wisparse, "ALONE_WINDOWS", 1)
    monkeypatch.setattr(alpha, "ALPHAS", (0.0, 0.5, 1.0))
    text, policies = uniform.sample_text(), []
    tokens = model.tokenizer.encode(text)
    for method in ("uniform", "teal", "wisparse"):
        search, most = Search(1, 4), len(tokens) * 2 // 3
        make = methods.calibrate(method, model.llama, model.container, model.tokenizer, text, most, tmp_path, search)
        policies.append(make(0.5))
    found = policies[-1].calibration
    assert sum(found["steps"]) == 0
    assert found["kl_found"] <= found["kl_even"]
    parts = windows(tokens[len(tokens) * 2 // 3 :], 256)
    costs = [np.mean(np.concatenate(score.kl)) for score in evaluate(model.llama, parts, policies)]
    assert costs[1] < costs[0]


CHAINS = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 50},
    {"temperature": 1.2, "top_p": 0.9},
    {"dry_multiplier": 0.8},
    {"temperature": 1.0, "top_k": 200, "top_p": 0.95, "min_p": 0.02},
)


def check_against_plain(model: spqt_ti.Model, chains: Any, seeds: int, count: int, width: int, most: int) -> None:
    """Sampled, constrained and beam-searched tokens are those that plain NumPy takes on the same logits."""
    text = RECORDED["prompt"]
    prompt, eos = model.tokenizer.encode(text), model.tokenizer.eos_ids
    logits, spelled = plain_generation.Logits(model.llama, prompt), model.tokenizer.spelled
    words = tuple(map("".join, itertools.product(("Par", "Lyo"), "iea", "sn ", "!.")))
    allowed = plain_generation.one_of(words, model.tokenizer, model.container.config.vocab_size)
    for chain, seed in itertools.product(chains, range(seeds)):
        expected = plain_generation.sample(logits, count, eos, seed, spelled=spelled, **chain)
        assert model.generate(text, max_new_tokens=count, seed=seed, **chain).token_ids == expected
        expected = plain_generation.sample(logits, count, eos, seed, allowed, spelled, **chain)
        constraint = spqt_ti.Constraint("regex", "(Par|Lyo)[iea][sn ][!.]")
        found = model.generate(text, max_new_tokens=count, seed=seed, constraint=constraint, **chain)
        assert found.token_ids == expected
        assert found.text in words
    searched = plain_generation.beam_search(logits, width, most, eos, 1.0)
    beams = model.beam_search(text, beams=width, max_new_tokens=most).beams
    assert [tuple(beam.token_ids) for beam in beams] == [tokens for _, tokens in searched]
    np.testing.assert_allclose([beam.score for beam in beams], [score for score, _ in searched], rtol=1e-9)


@pytest.mark.parametrize("level", ["0.0", "0.4"])
def test_generation_is_the_plain_one(model: spqt_ti.Model, level: str) -> None:
    pytest.importorskip("llguidance")
    apply(model, level)
    check_against_plain(model, CHAINS[-2:], seeds=1, count=12, width=3, most=4)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["0.0", "0.4"])
def test_more_of_generation_is_the_plain_one(model: spqt_ti.Model, level: str) -> None:
    apply(model, level)
    check_against_plain(model, CHAINS, seeds=3, count=48, width=4, most=16)


@pytest.mark.parametrize("level", ["0.0", "0.4"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_json_of_a_schema(model: spqt_ti.Model, level: str, temperature: float) -> None:
    """The tokens are those of the masked logits, whatever the model likes better."""
    pytest.importorskip("llguidance")
    apply(model, level)
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    message = [{"role": "user", "content": "Who are you?"}]
    found = model.generate(
        message, constraint=spqt_ti.Constraint.json_schema(schema), max_new_tokens=60, temperature=temperature
    )
    value = json.loads(found.text)
    assert list(value) == ["name", "age"]
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 20
    assert isinstance(value["age"], int)
    assert value["age"] <= 150
    assert found.finish_reason == "stop"


def test_chat(model: spqt_ti.Model) -> None:
    apply(model, "0.0")
    answer = model.generate("What is the capital of France?", chat=True, max_new_tokens=24)
    assert "Paris" in answer.text
    assert "<|im_" not in answer.text
