"""GGUF files of every architecture against llama.cpp, which reads and runs them without any of our code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from tiny_models import random_weights, tiny_config, write_gguf

from spqt_ti.model import reference
from spqt_ti.model.architectures import ARCHITECTURES
from spqt_ti.model.reference import Reference
from spqt_ti.sources.open import open_checkpoint

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install '.[peers]'")

_OURS = reference.activated
F32 = 0  # ggml's number of the type
TOKENS = [0, 17, 203, 5, 5, 299, 42, 150, 3, 88, 261, 7, 19, 33, 250, 121, 64, 90, 2, 11]
VOCABULARY = len(json.loads(tiny_models.tiny_tokenizer_json())["model"]["vocab"])  # llama.cpp has no rows beyond it
LONG = tiny_models.LONGROPE


def _original(positions: int) -> dict[str, int]:
    """llama.cpp rounds a context of 64 up to 256, and looks at the context alone."""
    return {"original_max_position_embeddings": positions}


CASES: dict[str, dict[str, Any]] = {
    **{
        name: tiny_models.CASES[name] if row.multipliers or row.partial_rope else {"model_type": name}
        for name, row in ARCHITECTURES.items()
        if row.gguf_name
    },
    "phi3": tiny_models.CASES["phi3"] | {"sliding_window": None, "rope_scaling": replace(LONG, **_original(256))},
    "phi3 beyond its original context": tiny_models.CASES["phi3"]
    | {"sliding_window": None, "rope_scaling": replace(LONG, **_original(16))},
    "biases": {"attention_bias": True},
    "wide_heads": {"head_dim": 80, "num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "linear_rope": tiny_models.CASES["linear_rope"],
    "llama3_rope": tiny_models.CASES["llama3_rope"],
}


def their_logits(path: Path) -> np.ndarray:
    """f32 [tokens, vocab], weights and cache in f32."""
    model = llama_cpp.Llama(
        str(path), n_ctx=64, n_batch=64, n_threads=1, logits_all=True, type_k=F32, type_v=F32, verbose=False
    )
    try:
        model.eval(TOKENS)
        return np.array(model.scores[: len(TOKENS)])
    finally:
        model.close()


def our_logits(path: Path) -> np.ndarray:
    """f64 [tokens, vocab] of what the checkpoint says, by the reference that the runner is tested against."""
    checkpoint = open_checkpoint(path)
    weights = {name: checkpoint.read(name).astype(np.float64) for name in checkpoint.names()}
    return Reference(checkpoint.config, weights).logits(TOKENS)


def _activated(name: str, gate: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    if "gelu" not in name:
        return _OURS(name, gate, threshold)
    rounded = _OURS(name, gate.astype(np.float16).astype(np.float64)).astype(np.float16)
    return np.where(np.abs(gate) < 10, rounded, np.maximum(gate, 0))


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_logits(changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp computes in f32 (measured: 4e-7 of the largest logit), but GELU in f16, from a table (with that in the
    reference: 6e-6).
    """
    monkeypatch.setattr(reference, "activated", _activated)
    config = tiny_config(vocab_size=VOCABULARY, **changes)
    path = write_gguf(tmp_path / "model.gguf", config, random_weights(config))
    expected = their_logits(path)
    np.testing.assert_allclose(our_logits(path), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_window_is_the_files_although_llama_cpp_ignores_it(tmp_path: Path) -> None:
    """Its `llama` reads no attention.sliding_window. A Mistral that was trained with one is applied as transformers
    does (tests/model/test_architectures.py).
    """
    config = tiny_config(vocab_size=VOCABULARY, model_type="mistral", sliding_window=5)
    path = write_gguf(tmp_path / "model.gguf", config, random_weights(config))
    assert open_checkpoint(path).config == config
    difference = np.abs(our_logits(path) - their_logits(path)).max(axis=1)
    assert (difference[:5] < 1e-4).all()
    assert difference[5:].max() > 0.1
