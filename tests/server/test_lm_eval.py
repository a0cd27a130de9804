"""lm-eval's client of such servers, beside the adapter that runs in its process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import served
import tiny_containers

import spqt_ti
from spqt_ti.sparsity.policy import SparsityPolicy

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install '.[lm-eval]'")
pytest.importorskip("tenacity", reason="lm_eval's API client is not installed: pip install 'lm-eval[api]'")

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

from spqt_ti.evaluation.harness import SpqtLM

PAIRS = [
    ("The quick brown", " fox jumps"), ("The quick brown", " dog"), ("In the beginning was", " the word"),
    ("A small model", " learns a few words: the, of"), ("naïve", " café"),
]  # fmt: skip


def asked(kind: str, *arguments: Any) -> list[Instance]:
    return [Instance(kind, {}, pair, number) for number, pair in enumerate(arguments)]


@pytest.mark.parametrize("sparse", [False, True])
def test_likelihoods_are_those_of_the_adapter(
    policy: SparsityPolicy, tmp_path: Path, sparse: bool
) -> None:  # fmt: skip
    """With the server's own tokenizer, which lm_eval finds by itself. To four digits."""
    path = tiny_containers.container("gqa").path
    policy.save(tmp_path / "p.json")
    options = {"policy": tmp_path / "p.json"} if sparse else {}
    adapter = SpqtLM(path, context=64, threads=tiny_containers.THREADS, **options)
    model = spqt_ti.load(path, context=64, threads=tiny_containers.THREADS, sparsity=policy if sparse else 0.0)
    with served.served(model) as (_, address):
        client = LocalCompletionsAPI(base_url=f"{address}/v1/completions", model=served.NAME, max_length=64)
        assert client.tokenizer_backend == "remote"
        found = client.loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True)
        text = client.generate_until(
            asked("generate_until", ("The quick", {"until": ["o"], "max_gen_toks": 12})), disable_tqdm=True
        )
    expected = adapter.loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert text[0] == adapter._generate("The quick", {"until": ["o"], "max_gen_toks": 12})
