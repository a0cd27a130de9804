"""Attention of the query heads of a KV head over the KV cache, whole and in shares of its pages, against float64."""

import functools

import numpy as np
import pytest
from device_vectors import download, upload

from spqt_ti.backend import start, ti
from spqt_ti.kernels.cpu.attention import CacheShape, Offsets, make_attend, make_writers
from spqt_ti.kernels.cpu.vectors import array_of, f32x16

CONTEXT = 64
# Around the ends of a page of 16 positions, and both ends of the context.
POSITIONS = [0, 1, 14, 15, 16, 17, 31, 32, CONTEXT - 1]
HEAD_DIMS = [16, 48, 80]


@pytest.fixture(scope="module", autouse=True)
def _runtime():
    start("cpu")


@functools.cache
def make_kernels(shape: CacheShape, queries_per_kv: int, windowed: bool):
    head_dim = shape.head_dim
    attend, (write_key, write_value) = make_attend(shape, queries_per_kv, windowed), make_writers(shape)
    scores = queries_per_kv * head_dim // 16
    out, softmax = scores + queries_per_kv * CONTEXT // 16, scores + queries_per_kv * (CONTEXT + head_dim) // 16

    @ti.kernel
    def write(cache: array_of(shape.dtype), keys: ti.i32, values: ti.i32, position: ti.i32, a: array_of(f32x16)):
        """The key is a[0 : head_dim], the value follows it."""
        for _ in range(1):
            write_key(cache, keys, position, a, 0)
            write_value(cache, values, position, a, head_dim // 16)

    @ti.kernel
    def run(
        cache: array_of(shape.dtype), keys: ti.i32, a: array_of(f32x16), first: ti.i32, last: ti.i32, begin: ti.i32,
        position: ti.i32,
    ):  # fmt: skip
        """The queries are first in `a`; scores, the weighted sums, and maxima with sums of weights follow them."""
        for _ in range(1):
            attend(cache, keys, a, 0, first, last, begin, position, ti.static(Offsets(scores, out, softmax)))

    return write, run


class Cache:
    """A KV cache of two layers and two heads; what no test wrote is NaN, as stale as can be."""

    def __init__(self, head_dim: int, queries_per_kv: int = 1, half: bool = False, windowed: bool = False) -> None:
        self.head_dim, self.queries_per_kv = head_dim, queries_per_kv
        self.shape = CacheShape(2, 2, head_dim, CONTEXT, half)
        stale = np.full(self.shape.vectors * 16, np.nan, np.float16 if half else np.float32)
        self.array = upload(stale, self.shape.dtype)
        self._write, self._run = make_kernels(self.shape, queries_per_kv, windowed)

    def start(self, layer: int, head: int) -> tuple[int, int]:
        """First vectors of the keys and the values."""
        keys = layer * self.shape.layer_stride + head * 2 * self.shape.half_stride
        return keys, keys + self.shape.half_stride

    def write(self, keys: np.ndarray, values: np.ndarray, layer: int = 1, head: int = 1, begin: int = 0) -> None:
        for position, (key, value) in enumerate(zip(keys, values, strict=True), begin):
            self._write(self.array, *self.start(layer, head), position, upload(np.concatenate([key, value])))

    def attend(
        self, query: np.ndarray, position: int, pages: tuple[int, int] | None = None, layer: int = 1, head: int = 1,
        begin: int = 0,
    ) -> tuple[float, float, np.ndarray]:  # fmt: skip
        """Maximum, sum of weights and weighted sum of values over some pages (default: all that are needed)."""
        return self.attend_queries(query[None], position, pages, layer, head, begin)[0]

    def attend_queries(
        self, queries: np.ndarray, position: int, pages: tuple[int, int] | None = None, layer: int = 1, head: int = 1,
        begin: int = 0,
    ) -> list[tuple[float, float, np.ndarray]]:  # fmt: skip
        """The same of every query [queries_per_kv, head_dim] of the KV head."""
        first, last = pages or (begin // 16, position // 16 + 1)
        queries_per_kv = self.queries_per_kv
        scratch = np.full(queries_per_kv * (CONTEXT + self.head_dim + 16), np.nan)
        a = upload(np.concatenate([queries.reshape(-1), scratch]))
        self._run(self.array, self.start(layer, head)[0], a, first, last, begin, position)
        result = download(a)
        softmax = result[-16 * queries_per_kv :].reshape(queries_per_kv, 16)
        sums = result[: -16 * queries_per_kv][-queries_per_kv * self.head_dim :].reshape(queries_per_kv, self.head_dim)
        return [(float(softmax[h, 0]), float(softmax[h, 1]), sums[h]) for h in range(queries_per_kv)]


def random_sequence(head_dim: int, length: int = CONTEXT, scale: float = 1.0) -> tuple[np.ndarray, ...]:
    """query f32 [head_dim], keys and values f32 [length, head_dim]."""
    rng = np.random.default_rng(head_dim)
    query, keys, values = (rng.standard_normal(size) for size in (head_dim, (length, head_dim), (length, head_dim)))
    return (scale * query).astype(np.float32), keys.astype(np.float32), values.astype(np.float32)


def softmax(scores: np.ndarray) -> np.ndarray:
    p = np.exp(scores - scores.max())
    return p / p.sum()


def expected_attention(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    scores = keys.astype(np.float64) @ query / np.sqrt(query.size)
    return softmax(scores) @ values


def join(parts: list[tuple[float, float, np.ndarray]]) -> np.ndarray:
    """Shares of a sequence put together, as the decode step does."""
    highest = max(m for m, _, _ in parts)
    weights = [np.exp(np.float64(m - highest)) for m, _, _ in parts]
    total = sum(w * t for w, (_, t, _) in zip(weights, parts, strict=True))
    return sum(w * out for w, (_, _, out) in zip(weights, parts, strict=True)) / total


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("position", POSITIONS)
def test_attention(head_dim, position) -> None:
    query, keys, values = random_sequence(head_dim, position + 1)
    cache = Cache(head_dim)
    cache.write(keys, values)
    m, total, out = cache.attend(query, position)
    scores = keys.astype(np.float64) @ query / np.sqrt(head_dim)
    # Scores err by a few 1e-7 (sums of head_dim products of size 1), which is their weights' relative error.
    assert m == pytest.approx(scores.max(), abs=1e-6)
    assert total == pytest.approx(np.exp(scores - m).sum(), rel=2e-6)
    np.testing.assert_allclose(out / total, softmax(scores) @ values, rtol=0, atol=2e-6)


# Heads that go together: all of a KV head, all but one, and, of 128 values, two by two.
@pytest.mark.parametrize(("queries_per_kv", "head_dim"), [(2, 16), (3, 64), (4, 48), (7, 48), (5, 128)])
@pytest.mark.parametrize("half", [False, True])
def test_queries_of_a_kv_head(queries_per_kv, head_dim, half) -> None:
    """Each query gets its own attention; in f16 over keys and values as they are stored."""
    _, keys, values = random_sequence(head_dim, 50)
    queries = np.random.default_rng(queries_per_kv).standard_normal((queries_per_kv, head_dim)).astype(np.float32)
    cache = Cache(head_dim, queries_per_kv, half)
    cache.write(keys, values)
    stored = (a.astype(np.float16).astype(np.float32) if half else a for a in (keys, values))
    keys, values = stored
    for query, (_, total, out) in zip(queries, cache.attend_queries(queries, 49), strict=True):
        np.testing.assert_allclose(out / total, expected_attention(query, keys, values), rtol=0, atol=2e-6)


@pytest.mark.parametrize("position", POSITIONS)
def test_shares_of_pages_join_to_the_whole(position) -> None:
    """Every way to cut the pages in two, empty shares included: a worker may have none."""
    query, keys, values = random_sequence(48, position + 1)
    cache = Cache(48)
    cache.write(keys, values)
    pages = position // 16 + 1
    for cut in range(pages + 1):
        parts = [cache.attend(query, position, share) for share in ((0, cut), (cut, pages))]
        np.testing.assert_allclose(join(parts), expected_attention(query, keys, values), rtol=0, atol=2e-6)


def test_an_empty_share_weighs_nothing() -> None:
    m, total, out = Cache(16).attend(np.ones(16), 20, (1, 1))
    assert (m, total) == (float(np.float32(-3e38)), 0)
    np.testing.assert_array_equal(out, 0)


@pytest.mark.parametrize("scale", [1e3, -1e3, 0.0])
def test_scores_far_apart(scale) -> None:
    """Differences beyond what exp can hold: one position gets all the weight; a query of zeros weighs all the same."""
    query, keys, values = random_sequence(48, 40, scale)
    cache = Cache(48)
    cache.write(keys, values)
    _, total, out = cache.attend(query, 39)
    # A score of 1e3 is rounded by 6e-5, which is then its weight's relative error.
    np.testing.assert_allclose(
        out / total, expected_attention(query, keys, values), rtol=0, atol=1e-3 if scale else 1e-6
    )


def test_later_positions_weigh_nothing() -> None:
    """A longer sequence that was there before, with keys that match the query perfectly."""
    query, keys, values = random_sequence(48)
    cache = Cache(48)
    cache.write(np.where(np.arange(CONTEXT)[:, None] > 20, 100 * query, keys), 1000 * values)
    cache.write(keys[:21], values[:21])
    _, total, out = cache.attend(query, 20)
    np.testing.assert_allclose(out / total, expected_attention(query, keys[:21], values[:21]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("window", [1, 5, 15, 16, 17, 33, CONTEXT])
def test_positions_before_a_window_are_not_seen(window) -> None:
    """They are NaN here. Shares of the pages join as they do without a window."""
    for position in POSITIONS:
        begin = max(0, position + 1 - window)
        query, keys, values = random_sequence(48, position + 1 - begin)
        cache = Cache(48, windowed=True)
        cache.write(keys, values, begin=begin)
        first, last = begin // 16, position // 16 + 1
        for cut in range(first, last + 1):
            parts = [cache.attend(query, position, share, begin=begin) for share in ((first, cut), (cut, last))]
            np.testing.assert_allclose(join(parts), expected_attention(query, keys, values), rtol=0, atol=2e-6)


def test_layers_and_heads_do_not_touch() -> None:
    cache, sequences = Cache(16), {}
    for layer in range(2):
        for head in range(2):
            rng = np.random.default_rng(2 * layer + head)
            sequences[layer, head] = rng.standard_normal((2, CONTEXT, 16)).astype(np.float32)
            cache.write(*sequences[layer, head], layer, head)
    query = random_sequence(16)[0]
    for (layer, head), (keys, values) in sequences.items():
        _, total, out = cache.attend(query, CONTEXT - 1, None, layer, head)
        np.testing.assert_allclose(out / total, expected_attention(query, keys, values), rtol=0, atol=2e-6)


def test_layout() -> None:
    """Keys transposed in pages of 16 positions, values as they are; together they fill the cache."""
    _, keys, values = random_sequence(48)
    cache = Cache(48)
    for layer in range(2):
        for head in range(2):
            cache.write(keys, values, layer, head)
    stored = download(cache.array)
    assert np.isfinite(stored).all()
    start, middle = (16 * s for s in cache.start(1, 0))
    np.testing.assert_array_equal(stored[start:middle].reshape(4, 48, 16), keys.reshape(4, 16, 48).transpose(0, 2, 1))
    np.testing.assert_array_equal(stored[middle : middle + values.size], values.reshape(-1))
