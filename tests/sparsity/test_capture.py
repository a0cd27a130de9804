"""Quantiles from histograms: as close to the sorted inputs as a bin is wide."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_containers
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spqt_ti.errors import PolicyError
from spqt_ti.model.sites import SITES, inputs_per_layer
from spqt_ti.parallel.executors import InProcess
from spqt_ti.parallel.study import ModelReference
from spqt_ti.sparsity import capture as capturing
from spqt_ti.sparsity.capture import Magnitudes, capture
from spqt_ti.sparsity.checkpoint import Checkpoint
from spqt_ti.sparsity.methods.wina import column_norms
from spqt_ti.sparsity.search.swept import Elsewhere

BIN = 1 / 128  # a bin is at most half as wide, relative to its lower edge
SMALLEST = 2.0**-134  # upper edge of the bin that holds 0
LEVELS = np.round(np.arange(100) / 100, 2)

finite = hnp.arrays(
    np.float32, st.integers(1, 200), elements=st.floats(-(2.0**125), 2.0**125, width=32, allow_nan=False)
)


def quantiles(inputs: np.ndarray, levels=LEVELS) -> np.ndarray:
    magnitudes = Magnitudes(1)
    magnitudes.observe(0, "qkv", inputs)
    return magnitudes_of(magnitudes, levels)


def magnitudes_of(magnitudes: Magnitudes, levels=LEVELS) -> np.ndarray:
    """The quantiles of site 0 alone: sites that saw nothing have none."""
    magnitudes.counts[:, 1:] = magnitudes.counts[:, :1]
    return magnitudes.quantiles(levels)[0, 0]


def sample(name: str) -> np.ndarray:
    generator = np.random.default_rng(0)
    normal = generator.standard_normal(100_000)
    return {
        "normal": normal,
        "lognormal": np.exp(2 * normal),
        "huge": normal * 1e35,
        "small": normal * 1e-30,
        "mixed_with_zeros": np.where(np.arange(100_000) % 3 == 0, 0, normal),
    }[name].astype(np.float32)


# Closeness ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["normal", "lognormal", "huge", "small"])
def test_as_numpy_within_a_bin(name):
    inputs = sample(name)
    expected = np.quantile(np.abs(inputs).astype(np.float64), LEVELS)
    # Below 3 % so few of these inputs lie in a bin that NumPy's own interpolation differs by more.
    np.testing.assert_allclose(quantiles(inputs)[3:], expected[3:], rtol=BIN)


def test_zeros_among_the_inputs():
    """A third are zeros: up to there the threshold is nothing but the bin of zero, above as NumPy has it."""
    inputs = sample("mixed_with_zeros")
    found = quantiles(inputs)
    assert (found[:33] <= SMALLEST).all()
    np.testing.assert_allclose(found[36:], np.quantile(np.abs(inputs).astype(np.float64), LEVELS[36:]), rtol=BIN)


@pytest.mark.parametrize("value", [1.0, -3.7, 1e-20, 3e38])
def test_all_equal(value):
    np.testing.assert_allclose(quantiles(np.full(1000, value, np.float32)), abs(np.float32(value)), rtol=BIN)


def test_all_zero():
    assert (quantiles(np.zeros(1000, np.float32)) <= SMALLEST).all()


@given(finite)
def test_in_the_bin_of_the_sorted_input(inputs):
    """At level q lies the input that has q * n others below it."""
    place = np.minimum(np.floor(LEVELS * len(inputs)), len(inputs) - 1).astype(int)
    expected = np.sort(np.abs(inputs.astype(np.float64)))[place]
    found = quantiles(inputs).astype(np.float64)
    # Denormals have bins of one width.
    assert (np.abs(found - expected) <= np.maximum(BIN * expected, SMALLEST)).all()


def test_linear_inside_a_bin():
    """Bins of 1/256 each; their values are equally spaced."""
    inputs = np.linspace(1, 2, 25601, dtype=np.float32)[:-1]
    np.testing.assert_allclose(quantiles(inputs), 1 + LEVELS, rtol=1e-6)


def test_a_share_of_the_inputs_lies_below():
    inputs = sample("normal")
    for level, threshold in zip(LEVELS[::10], quantiles(inputs)[::10], strict=True):
        assert np.mean(np.abs(inputs) <= threshold) == pytest.approx(level, abs=0.002)


# Counting -------------------------------------------------------------------------------------------------------------


@given(finite, st.integers(0, 200))
def test_two_parts_are_as_good_as_the_whole(inputs, cut):
    whole, parts = Magnitudes(1), Magnitudes(1)
    whole.observe(0, "o", inputs)
    parts.observe(0, "o", inputs[:cut])
    parts.observe(0, "o", inputs[cut:])
    np.testing.assert_array_equal(whole.counts, parts.counts)
    assert whole.counts.sum() == len(inputs)


@given(finite)
def test_the_sign_does_not_count(inputs):
    both = [quantiles(values) for values in (inputs, -inputs, np.abs(inputs))]
    np.testing.assert_array_equal(both[0], both[1])
    np.testing.assert_array_equal(both[0], both[2])


@given(finite, st.lists(st.floats(0, 1), min_size=2, max_size=20).map(sorted))
def test_monotone_in_the_level(inputs, levels):
    found = quantiles(inputs, levels)
    assert (np.diff(found) >= 0).all()
    assert (found >= 0).all()


def test_each_layer_and_site_has_its_own():
    magnitudes = Magnitudes(2)
    for layer, site in np.ndindex(2, len(SITES)):
        magnitudes.observe(layer, SITES[site], np.full((3, 5), 2.0 ** (4 * layer + site), np.float32))
    found = magnitudes.quantiles([0.5])
    assert found.shape == (2, len(SITES), 1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[..., 0], 2.0 ** np.arange(8).reshape(2, 4), rtol=BIN)


@pytest.mark.parametrize("inputs", [np.arange(24.0).reshape(4, 6).T, np.arange(48, dtype=np.float32)[::2]])
def test_any_memory_layout_and_float_type(inputs):
    other = np.ascontiguousarray(inputs, np.float32).reshape(-1)
    np.testing.assert_array_equal(quantiles(inputs), quantiles(other))


def test_no_tokens():
    with pytest.raises(PolicyError, match="no tokens"):
        capture(None, [], 512)


# Interrupted ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_goes_on_where_it_was(cut, tmp_path, monkeypatch):
    """Interrupted in window `cut` of five: windows that were counted are not run again, and the counts are the same."""
    model, tokens = tiny_containers.llama("gqa"), np.random.default_rng(7).integers(0, 300, 300).tolist()
    model.selectors.clear()
    whole = capture(model, tokens, 512)
    monkeypatch.setattr(capturing, "SAVE_SECONDS", 0.0)
    checkpoint, run, ran = Checkpoint(tmp_path), model.prefill, []

    def until_interrupted(part, **options):
        if len(ran) == cut:
            ran.append(None)
            raise KeyboardInterrupt
        ran.append(part)
        return run(part, **options)

    monkeypatch.setattr(model, "prefill", until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        capture(model, tokens, 512, checkpoint=checkpoint)
    resumed = capture(model, tokens, 512, checkpoint=checkpoint)
    assert [token for part in ran if part for token in part] == tokens
    np.testing.assert_array_equal(resumed.counts, whole.counts)
    capture(model, tokens, 512, checkpoint=checkpoint)
    assert len(ran) == 6  # five windows and the interruption: what is finished is not run at all


def test_checkpoint_of_another_window(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    capture(tiny_containers.llama("gqa"), [1, 2, 3], 64, checkpoint=checkpoint)
    with pytest.raises(PolicyError, match="window is 64, not 32"):
        capture(tiny_containers.llama("gqa"), [1, 2, 3], 32, checkpoint=checkpoint)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_windows_that_run_elsewhere_are_counted_as_here(alpha: float, tmp_path) -> None:
    """The same counts, with weights made from alphas, and a checkpoint that either goes on from."""
    container, llama = tiny_containers.container("gqa"), tiny_containers.llama("gqa", exact=False)
    tokens = np.random.default_rng(0).integers(0, 300, 100).tolist()
    alphas = [[alpha] * len(SITES)] * 2
    weights = column_norms(container) if alpha else {}
    elsewhere = Elsewhere(InProcess(), ModelReference.of(container))
    here = capture(llama, tokens, 30, weights)
    kept = Checkpoint(tmp_path, {"model": "m"})
    there = capture(llama, tokens, 30, weights, kept, "c", elsewhere, alphas)
    np.testing.assert_array_equal(there.counts, here.counts)
    assert here.counts.sum() == 100 * inputs_per_layer(container.config).sum()
    np.testing.assert_array_equal(capture(llama, tokens, 30, weights, kept, "c").counts, here.counts)
