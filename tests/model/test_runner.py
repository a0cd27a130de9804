"""The runner on tiny models, against the float64 forward pass on the same dequantised weights.

Tolerance: f32 rounding through two layers leaves about 1e-6 of the largest logit (measured: at most 2e-6), 1e-5 is
allowed. Logits here are below 20.
"""

from __future__ import annotations

import gc
import threading
import tracemalloc
from typing import Any

import llama_float64
import needs
import numpy as np
import pytest
import tiny_containers
import tiny_models

from spqt_ti.backend import ti
from spqt_ti.errors import GenerationError
from spqt_ti.model.engine import CHUNK, MOST_TOKENS
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES

pytestmark = pytest.mark.any_backend

TOLERANCE = 1e-5  # of the largest logit
TOKENS = [0, 17, 203, 5, 5, 299, 42, 150, 3, 88, 261, 7, 19, 33, 250, 121, 64, 90, 2, 11]


@pytest.fixture(params=tiny_containers.MODELS)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


def fresh(case: str, threads: int = tiny_containers.THREADS) -> Llama:
    """The case's runner, dense and empty."""
    model = tiny_containers.llama(case, threads)
    model.reset()
    model.selectors.clear()
    return model


def reference(case: str, tokens: list[int] = TOKENS, mask: llama_float64.Mask | None = None) -> np.ndarray:
    container = tiny_containers.container(case)
    return llama_float64.forward(container.config, dict(container.weights()), tokens, mask)


def decode_all(model: Llama, tokens: list[int] = TOKENS) -> np.ndarray:
    return np.stack([model.decode(token).copy() for token in tokens])


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    """Logits equal within TOLERANCE, and the same argmax wherever the top two differ by more than the tolerance."""
    bound = TOLERANCE * np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=bound)
    top = np.sort(expected, axis=-1)[..., -2:]
    clear = top[..., 1] - top[..., 0] > 2 * bound
    assert (got.argmax(-1) == expected.argmax(-1))[clear].all()


def test_prefill(case: str) -> None:
    assert_close(fresh(case).prefill(TOKENS, logits="all"), reference(case))


def test_decode(case: str) -> None:
    assert_close(decode_all(fresh(case)), reference(case))


@needs.sixteen_bits
def test_decode_in_16_bits() -> None:
    """As it runs by default, where the CPU can: an error of 5e-5 per product (measured here: 1e-4)."""
    model = tiny_containers.llama("gqa", exact=False)
    model.reset()
    expected = reference("gqa")
    np.testing.assert_allclose(decode_all(model), expected, rtol=0, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("cut", [1, 2, 16, 17])
def test_decode_continues_a_prefill(cut: int) -> None:
    model = fresh("gqa")
    model.prefill(TOKENS[:cut])
    assert_close(decode_all(model, TOKENS[cut:]), reference("gqa")[cut:])


@pytest.mark.parametrize("cuts", [(3, 16), (1, 2, 17, 19)])
def test_prefill_in_pieces(cuts: tuple[int, ...]) -> None:
    model = fresh("gqa")
    pieces = [model.prefill(list(piece), logits="all") for piece in np.split(np.array(TOKENS), cuts)]
    assert_close(np.concatenate(pieces), reference("gqa"))


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Llama, dict[str, np.ndarray]]:
    """A runner with room for more than a chunk, and its weights.

    The context is no multiple of the cache's pages of 16, the vocabulary none of tiles of 64. Of its rows the first 150
    are one vector and the others twice that: many logits are equal, and for some tokens all are negative.
    """
    config = tiny_models.tiny_config(max_position_embeddings=300, num_hidden_layers=1, vocab_size=300)
    weights = tiny_models.random_weights(config)
    weights["lm_head.weight"][:150] = weights["lm_head.weight"][0]
    weights["lm_head.weight"][150:] = 2 * weights["lm_head.weight"][0]
    folder = tmp_path_factory.mktemp("long")
    source = tiny_models.write_huggingface(folder / "source", config, weights)
    container = tiny_containers.quantize(source, folder / "quantized")
    return Llama(container, threads=tiny_containers.THREADS, context=CHUNK + 31, exact=True), dict(container.weights())


@pytest.mark.parametrize("extra", [1, 2, 29])
def test_prompt_longer_than_a_chunk(long_model: tuple[Llama, dict[str, np.ndarray]], extra: int) -> None:
    """Two launches, the second of one token or more; then decoding up to the last position of the context."""
    model, weights = long_model
    tokens = np.random.default_rng(1).integers(0, 300, model.context).tolist()
    expected = llama_float64.forward(model.config, weights, tokens)
    model.reset()
    assert_close(model.prefill(tokens[: CHUNK + extra], logits="all"), expected[: CHUNK + extra])
    assert_close(decode_all(model, tokens[CHUNK + extra :]), expected[CHUNK + extra :])
    assert model.position == model.context == CHUNK + 31
    with pytest.raises(GenerationError, match=f"do not fit the context of {CHUNK + 31}"):  # not those of whole pages
        model.decode(0)
    model.reset()
    assert_close(model.prefill(tokens), expected[-1:])


def test_last_and_no_logits() -> None:
    model = fresh("gqa")
    every = model.prefill(TOKENS, logits="all")
    model.reset()
    last = model.prefill(TOKENS)
    # Alone in its batch of tokens a row's sums are the same sums.
    np.testing.assert_array_equal(last, every[-1:])
    model.reset()
    assert model.prefill(TOKENS, logits="none").shape == (0, model.config.vocab_size)


@pytest.mark.parametrize("wanted", ["typo", "", None, True])
def test_an_unknown_word_for_logits(wanted: Any) -> None:
    with pytest.raises(GenerationError, match='logits must be "all", "last" or "none"'):
        fresh("gqa").prefill(TOKENS, logits=wanted)


@pytest.mark.parametrize("warm_up", ["warm_up_prefill", "warm_up_decode"])
def test_warming_up_needs_a_free_position(warm_up: str) -> None:
    """Beyond the last one there is other memory."""
    model = fresh("gqa")
    model.prefill([7] * model.context, "none")
    with pytest.raises(GenerationError, match="65 tokens do not fit the context of 64"):
        getattr(model, warm_up)()


def test_a_token_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may have something to say of compiling is not needed once that is over."""
    model = fresh("gqa")
    model.warm_up_prefill()
    model.warm_up_decode()
    started: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", started.append)
    model.warm_up_prefill()
    model.prefill(TOKENS[:3])
    model.warm_up_decode()
    model.decode(TOKENS[3])
    assert not started


def test_best_token_is_the_argmax() -> None:
    model = fresh("gqa")
    for token in TOKENS:
        logits = model.decode(token)
        assert model.best_token() == int(np.argmax(logits))


def test_greedy_tokens_in_one_launch_are_those_of_many() -> None:
    """Also what they leave behind: logits of the last one, sums of active inputs, the cache."""
    model, prompt = fresh("gqa"), [5, 7, 11]
    model.thresholds[:] = 0.3
    model.prefill(prompt)
    active, expected, token = np.zeros_like(model.active), [], 3
    for _ in range(7):
        logits = model.decode(token).copy()
        token = model.best_token()
        expected.append(token)
        active += model.active
    following = model.decode(token).copy()
    model.reset()
    model.prefill(prompt)
    assert model.decode_greedy(3, 7) == expected
    np.testing.assert_array_equal(model._decode.logits(), logits)
    np.testing.assert_array_equal(model.active, active)
    assert model.position == 10
    assert model.best_token() == expected[-1]
    np.testing.assert_array_equal(model.decode(expected[-1]), following)


def test_a_token_allocates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No arrays, and in Python only what a launch needs for a moment, however many tokens there are."""
    model = fresh("gqa")
    if model.backend != "cpu":
        pytest.skip("on a GPU the best tokens are copied to the host after every launch")
    model.thresholds[:] = 0.1
    token = model.decode_greedy(TOKENS[0], 1)[-1]

    def refuse(*arguments: object, **keywords: object) -> None:
        raise AssertionError("an array was made")

    monkeypatch.setattr(ti, "ndarray", refuse)
    tracemalloc.start()
    try:
        kept = []
        for tokens in (5, 25):
            for _ in range(tokens):
                token = model.decode_greedy(token, 1)[-1]
            gc.collect()  # Taichi's launch leaves closures that refer to themselves
            kept.append(tracemalloc.get_traced_memory()[0])
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert kept[1] - kept[0] < 1024
    assert most < 65536


@pytest.mark.parametrize("count", [0, MOST_TOKENS + 1, 3])
def test_too_many_greedy_tokens(count) -> None:
    model = fresh("gqa")
    model.position = model.context - 2
    with pytest.raises(GenerationError, match=f"{count} tokens in one launch, with room for 2"):
        model.decode_greedy(3, count)


def test_best_token_is_the_lowest_among_equals(long_model: tuple[Llama, dict[str, np.ndarray]]) -> None:
    """Also when every logit is negative: the rows that fill up the last tile have logits of 0."""
    model, signs = long_model[0], set()
    model.reset()
    for token in TOKENS:
        logits = model.decode(token)
        assert logits.shape == (300,)
        assert len(np.unique(logits)) == 2
        assert model.best_token() == (0 if logits[0] < 0 else 150)
        signs.add(np.sign(logits[0]))
    assert signs == {-1, 1}


def test_one_worker_agrees_with_two() -> None:
    assert_close(decode_all(fresh("gqa", threads=1)), decode_all(fresh("gqa")).astype(np.float64))
    assert_close(fresh("gqa", threads=1).prefill(TOKENS, "all"), fresh("gqa").prefill(TOKENS, "all").astype(np.float64))


def test_repeat_runs_are_identical(case: str) -> None:
    model = fresh(case)
    model.thresholds[:] = 0.3
    first = decode_all(model)
    model.reset()
    np.testing.assert_array_equal(decode_all(model), first)


def test_more_than_one_token_goes_dense() -> None:
    model = fresh("gqa")
    dense = model.prefill(TOKENS, logits="all")
    model.reset()
    model.thresholds[:] = 0.5
    np.testing.assert_array_equal(model.prefill(TOKENS, logits="all"), dense)


def test_weighted_inputs() -> None:
    """Decode and masked prefill skip what |x| * weight says, at the sites that have weights and at the others."""
    model, tokens = fresh("gqa"), TOKENS[:6]
    generator, weights, active = np.random.default_rng(3), {}, np.zeros((len(tokens), 2, len(SITES)), int)
    for layer, site in ((0, "qkv"), (0, "down"), (1, "o"), (1, "gate_up")):
        weights[layer, site] = np.exp(generator.standard_normal(model.inputs()[SITES.index(site)])).astype(np.float32)
        model.selectors.weigh(layer, site, weights[layer, site])

    def gap(layer: int, site: str, x: np.ndarray) -> np.ndarray:
        scores, place = np.abs(x) * weights.get((layer, site), 1.0), (layer, SITES.index(site))
        ordered = np.sort(scores, axis=None)
        near = slice(ordered.size // 2 - 40, ordered.size // 2 + 40)
        widest = near.start + int(np.argmax(np.diff(ordered[near])))
        model.thresholds[place] = (ordered[widest] + ordered[widest + 1]) / 2
        kept = scores > model.thresholds[place]
        active[:, layer, place[1]] = kept.sum(axis=1)
        return np.where(kept, x, 0)

    expected = reference("gqa", tokens, gap)
    assert_close(model.prefill(tokens, "all", masked=True), expected)
    model.reset()
    for position, token in enumerate(tokens):
        assert_close(model.decode(token), expected[position])
        np.testing.assert_array_equal(model.active, active[position])


class Gaps:
    """Records a threshold per layer and site in the middle of the widest gap near a quantile of the reference's |x|.

    Thresholds are discontinuous: an input within rounding of one may flip. In a gap no input is near, so the active
    sets of two correct implementations are equal, and logits can be compared as closely as dense ones. The sites are
    visited in the order of the forward pass, each with the inputs that the thresholds before it leave.
    """

    def __init__(
        self, inputs: np.ndarray, tokens: int, layers: tuple[int, ...] = (0, 1), sites: tuple[str, ...] = SITES,
        level: float = 0.5,
    ) -> None:  # fmt: skip
        self.thresholds = np.zeros((2, len(SITES)), np.float32)
        self.active = np.tile(inputs, (tokens, 2, 1))  # [tokens, layers, sites]
        self.layers, self.sites, self.level = layers, sites, level

    def __call__(self, layer: int, site: str, x: np.ndarray) -> np.ndarray:
        if layer not in self.layers or site not in self.sites:
            return x
        ordered = np.sort(np.abs(x[x != 0]), axis=None)  # after relu half of the inputs are zero
        near = slice(int(self.level * ordered.size * 0.9), int(self.level * ordered.size * 1.1) + 2)
        widest = near.start + int(np.argmax(np.diff(ordered[near])))
        threshold = np.float32((ordered[widest] + ordered[widest + 1]) / 2)
        assert ordered[widest + 1] - ordered[widest] > 1e-5 * ordered[widest], "no gap wide enough for f32"
        self.thresholds[layer, SITES.index(site)] = threshold
        kept = np.abs(x) > threshold
        self.active[:, layer, SITES.index(site)] = kept.sum(axis=1)
        return np.where(kept, x, 0)


def check_sparse(case: str, tokens: list[int], **where: Any) -> None:
    """Logits and, for every token, layer and site, the number of active inputs."""
    model = fresh(case)
    gaps = Gaps(model.inputs(), len(tokens), **where)
    expected = reference(case, tokens, gaps)
    model.thresholds[:] = gaps.thresholds
    for position, token in enumerate(tokens):
        assert_close(model.decode(token), expected[position])
        np.testing.assert_array_equal(model.active, gaps.active[position])
    model.reset()
    assert_close(model.prefill(tokens, "all", masked=True), expected)


@pytest.mark.parametrize("level", [0.25, 0.5, 0.8])
def test_sparse_decode_is_dense_on_masked_inputs(case: str, level: float) -> None:
    check_sparse(case, TOKENS[:4], level=level)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("site", SITES)
def test_one_sparse_site(site: str, layer: int) -> None:
    check_sparse("gqa", TOKENS[:8], sites=(site,), layers=(layer,))


@pytest.mark.parametrize("site", SITES)
def test_masked_prefill_zeroes_what_is_not_above_the_threshold(site: str) -> None:
    """The threshold is itself one of the magnitudes: that input is inactive, as the collector has it."""
    model, place = fresh("gqa"), (1, SITES.index(site))

    def inputs(masked: bool) -> np.ndarray:
        seen: dict[tuple[int, str], np.ndarray] = {}
        model.reset()
        model.prefill(TOKENS, "none", masked, lambda layer, name, x: seen.__setitem__((layer, name), x.copy()))
        return seen[1, site]

    dense = inputs(masked=False)
    threshold = np.sort(np.abs(dense), axis=None)[dense.size // 2]
    model.thresholds[place] = threshold
    np.testing.assert_array_equal(inputs(masked=True), np.where(np.abs(dense) > threshold, dense, 0))


def test_nothing_active(case: str) -> None:
    """With every input skipped a layer adds only its biases; embedding and head stay dense."""
    model = fresh(case)
    model.thresholds[:] = 1e30
    got = decode_all(model, TOKENS[:3])
    assert_close(got, reference(case, TOKENS[:3], lambda layer, site, x: np.zeros_like(x)))
    assert not model.active.any()


def test_everything_active_is_dense_bit_for_bit(case: str) -> None:
    """A threshold that no input fails: the collected list is the dense one, and so is every sum."""
    model = fresh(case)
    dense = decode_all(model)
    model.reset()
    # Not the first site: a quant of zero in a token's embedding is an input of zero, which is inactive.
    model.thresholds[:] = 1e-30
    model.thresholds[0, SITES.index("qkv")] = 0
    if model.config.has_exact_zeros:
        model.thresholds[:, SITES.index("down")] = 0
    np.testing.assert_array_equal(decode_all(model), dense)
    np.testing.assert_array_equal(model.active, np.tile(model.inputs(), (model.config.num_hidden_layers, 1)))


def test_inputs_of_zero_are_inactive() -> None:
    """Leaving them out changes only how the workers share the rest: rounding."""
    model, weights = fresh("gqa"), tiny_containers.container("gqa").dequantize("model.embed_tokens")
    token = int(np.argmax((weights == 0).sum(axis=1)))
    dense = decode_all(model, [token])
    model.reset()
    model.thresholds[:] = 1e-30
    assert_close(decode_all(model, [token]), dense.astype(np.float64))
    assert model.active[0, SITES.index("qkv")] == np.count_nonzero(weights[token]) < model.inputs()[0]


def test_observer_sees_every_site() -> None:
    seen: dict[tuple[int, str], np.ndarray] = {}
    expected: dict[tuple[int, str], np.ndarray] = {}
    model = fresh("gqa")
    model.prefill(TOKENS, "none", observer=lambda layer, site, x: seen.__setitem__((layer, site), x.copy()))

    def keep(layer: int, site: str, x: np.ndarray) -> np.ndarray:
        expected[layer, site] = x
        return x

    reference("gqa", mask=keep)
    assert seen.keys() == expected.keys()
    for key, x in expected.items():
        np.testing.assert_allclose(seen[key], x, rtol=0, atol=1e-5 * np.abs(x).max())


def test_bytes_are_proportional_to_active_inputs() -> None:
    model = fresh("gqa")
    full = np.tile(model.inputs(), (model.config.num_hidden_layers, 1))
    none, half, every = (model.traffic.bytes_per_token(full * share) for share in (0, 0.5, 1))
    assert none == 320 * model.config.hidden_size * 34 / 32  # the head
    assert half - none == pytest.approx((every - none) / 2)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [([], "no tokens"), ([320], "token id 320"), ([-1], "token id -1"), ([1] * 65, "65 tokens do not fit")],
)
def test_refused_tokens(tokens: list[int], message: str) -> None:
    model = fresh("gqa")
    with pytest.raises(GenerationError, match=message):
        model.prefill(tokens)
    assert model.position == 0


def test_decode_past_the_context() -> None:
    model = fresh("gqa")
    model.prefill([1] * 64)
    with pytest.raises(GenerationError, match="65 tokens do not fit"):
        model.decode(1)


@pytest.mark.parametrize("context", [0, -1, 257])
def test_refused_context(context: int) -> None:
    with pytest.raises(GenerationError, match="context must be between 1 and 256"):
        Llama(tiny_containers.container("gqa"), context=context)


# Hidden states --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_layers_one_by_one_are_prefill(masked: bool) -> None:
    """Embedding, layers and head give prefill's logits, bit for bit, also from a later layer on."""
    model, tokens = tiny_containers.llama("gqa"), np.random.default_rng(2).integers(0, 300, 40).tolist()
    model.selectors.clear()
    model.thresholds[:] = 0.3
    model.reset()
    expected = model.prefill(tokens, "all", masked)
    embedded = model.embed(tokens)
    states = list(model.layers(embedded, 0, masked))
    assert len(states) == model.config.num_hidden_layers
    np.testing.assert_array_equal(model.head(states[-1]), expected)
    (last,) = model.layers(states[0], 1, masked)
    np.testing.assert_array_equal(last, states[1])
    np.testing.assert_array_equal(model.head(states[-1][30:]), expected[30:])
    model.selectors.clear()


def test_longest_sequence_of_hidden_states() -> None:
    model = tiny_containers.llama("gqa")
    for call in (
        lambda: model.embed([1] * 65),
        lambda: model.head(np.zeros((65, 192), np.float32)),
        lambda: model.embed([]),
    ):
        with pytest.raises(GenerationError, match="in one chunk, which holds 1 to 64"):
            call()
