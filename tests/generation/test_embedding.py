"""Embeddings: pooled states after the final norm, against transformers' hidden states in float64."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_containers

import spqt_ti
from spqt_ti.api import Model
from spqt_ti.errors import GenerationError
from spqt_ti.generation import embedding as module
from spqt_ti.generation.embedding import embedding

pytestmark = pytest.mark.any_backend

TEXTS = ["The quick brown fox", "jumps over the lazy dog and on."]


@pytest.fixture(scope="module")
def model() -> Model:
    return spqt_ti.load(
        tiny_containers.container("gqa"), context=64, threads=tiny_containers.THREADS, exact=True
    )  # fmt: skip


def states(model: Model, ids: list[int]) -> np.ndarray:
    """f64 [n, hidden], by transformers."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers_models").of_container(model.container)
    with torch.no_grad():
        return theirs.model(torch.tensor([ids])).last_hidden_state[0].numpy()


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_those_of_transformers(model: Model, pooling: str) -> None:
    found = model.embed(TEXTS, pooling=pooling)
    assert found.dtype == np.float32
    for text, row in zip(TEXTS, found, strict=True):
        theirs = states(model, model.tokenizer.encode(text))
        pooled = theirs.mean(axis=0) if pooling == "mean" else theirs[-1]
        np.testing.assert_allclose(row, pooled / np.linalg.norm(pooled), atol=2e-6)
        np.testing.assert_array_equal(model.embed(text, pooling=pooling), row)
        np.testing.assert_allclose(
            model.embed(text, pooling=pooling, normalize=False), pooled, atol=1e-5 * abs(pooled).max()
        )  # fmt: skip


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_long_texts_come_in_chunks(model: Model, monkeypatch: pytest.MonkeyPatch, pooling: str) -> None:
    """With a chance to stop before each; what the sequence was before does not count."""
    ids = [1 + at % 200 for at in range(50)]
    whole = embedding(model.llama, ids, pooling)
    monkeypatch.setattr(module, "CHUNK", 7)
    calls: list[int] = []
    parts = embedding(model.llama, ids, pooling, between=lambda: calls.append(model.llama.position))
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    assert calls == [7 * at for at in range(8)]


def test_a_policy_changes_nothing(model: Model) -> None:
    dense = model.embed(TEXTS)
    model.llama.thresholds[:] = 0.5
    try:
        np.testing.assert_array_equal(model.embed(TEXTS), dense)
    finally:
        model.apply(None)


@pytest.mark.parametrize(
    ("texts", "more", "message"),
    [
        ("", {}, "no tokens"),
        ([], {}, "a list of at least one"),
        (b"a", {}, "a list of at least one"),
        (["a", 3], {}, "must be a str, not int"),
        ("a", {"pooling": "max"}, "pooling is mean or last, not 'max'"),
        ("a b " * 64, {}, "do not fit the context of 64"),
    ],
)
def test_what_is_refused(model: Model, texts: object, more: dict[str, str], message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        model.embed(texts, **more)  # type: ignore[arg-type]
