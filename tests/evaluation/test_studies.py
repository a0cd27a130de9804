"""Scores as a study are those of `evaluate`, item by item, and of a reference that is on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_containers

from spqt_ti.errors import ExecutionError
from spqt_ti.evaluation.perplexity import evaluate, windows
from spqt_ti.evaluation.studies import TextScores, WindowScores, policy_item, write_reference
from spqt_ti.sparsity.policy import SparsityPolicy

PARTS = windows(np.random.default_rng(3).integers(0, 300, 3 * 32).tolist(), 32)


def policy(path: Path) -> Path:
    thresholds = np.random.default_rng(4).uniform(0.3, 0.6, (2, 4)).astype(np.float32)
    SparsityPolicy("x", 0.5, thresholds, tiny_containers.container("gqa").fingerprint).save(path)
    return path


def study(reference: str | None = None) -> TextScores:
    settings = {"windows": PARTS, "threads": 1, "reference": reference}
    return TextScores(tiny_containers.container("gqa"), settings)


def test_are_those_of_evaluate(tmp_path: Path) -> None:
    path = policy(tmp_path / "policy.json")
    llama = tiny_containers.llama("gqa", exact=False)  # as a study has it
    (wanted,) = evaluate(llama, PARTS, [SparsityPolicy.load(path)])
    asked = study()
    found = WindowScores.of(asked(policy_item(path)))
    dense = WindowScores.of(asked(None))
    np.testing.assert_allclose(found.kl, [kl.mean() for kl in wanted.kl], rtol=0.02)
    np.testing.assert_allclose(found.nll, [nll.mean() for nll in wanted.nll], rtol=1e-3)
    assert found.realised_sparsity == pytest.approx(wanted.active.realised_sparsity, abs=2e-3)
    assert found.perplexity == pytest.approx(np.exp(np.concatenate(wanted.nll).mean()), rel=0.01)
    assert found.bytes_per_token < dense.bytes_per_token
    assert not dense.kl.any()
    assert dense.same.tolist() == [1.0] * 3


def test_a_reference_on_disk(tmp_path: Path) -> None:
    """Written once, and never again; KL is from it."""
    rng = np.random.default_rng(0)
    calls = []

    def scorer():
        calls.append(1)
        return lambda window: rng.standard_normal((len(window) // 2 - 1, 320))

    for _ in range(2):
        write_reference(tmp_path / "reference", PARTS, scorer)
    assert len(calls) == 1
    found = WindowScores.of(study(str(tmp_path / "reference"))(None))
    assert found.kl.min() > 0.1


def test_a_policy_that_has_changed(tmp_path: Path) -> None:
    item = policy_item(policy(tmp_path / "policy.json"))
    SparsityPolicy("y", 0.5, np.zeros((2, 4), np.float32), "m").save(tmp_path / "policy.json")
    with pytest.raises(ExecutionError, match="has changed"):
        study()(item)
