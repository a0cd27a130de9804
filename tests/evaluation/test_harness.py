"""The lm_eval adapter on task files of our own: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llama_float64
import numpy as np
import pytest
import tiny_containers

from spqt_ti.errors import GenerationError, PolicyError
from spqt_ti.sparsity.policy import SparsityPolicy

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install '.[lm-eval]'")

from lm_eval.tasks import TaskManager  # noqa: E402

from spqt_ti.evaluation.harness import SpqtLM  # noqa: E402

CONTEXT = 64
QUESTIONS = [
    {"question": "The quick brown", "choices": [" fox jumps", " dog", " word was"], "answer": 0},
    {"question": "In the beginning was", "choices": [" a dog", " the word", " lazy"], "answer": 1},
    {"question": "A small model", "choices": [" learns", " is that", " hello"], "answer": 2},
]
TEXTS = [
    "The quick brown fox jumps over the lazy dog." + " And again." * 30,
    "In the beginning was the word, and the word was.",
]
# What differs between the tasks; each metric is in the results as "NAME,none".
OUTPUTS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "continue": {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["o"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    """Task files and their data in a folder, which also is the cache of what the harness makes of them."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, differing in OUTPUTS.items():
        rows = [{"question": text} for text in TEXTS] if name == "perplexity" else QUESTIONS
        data = folder / f"{name}.json"
        data.write_text("\n".join(json.dumps(row) for row in rows))
        task = {
            "task": f"spqt_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder)},
            "test_split": "test",
            "doc_to_text": "{{question}}",
            "target_delimiter": "",
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task | differing))  # JSON is YAML
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policies") / "p.json"
    SparsityPolicy("mine", 0.5, np.full((2, 4), 0.4, np.float32), tiny_containers.container("gqa").fingerprint).save(
        path
    )
    return path


@pytest.fixture(scope="module")
def dense() -> SpqtLM:
    return SpqtLM(tiny_containers.container("gqa").path, context=CONTEXT, threads=tiny_containers.THREADS)


def evaluate(model: Any, tasks: TaskManager, name: str, **options: Any) -> dict[str, Any]:
    found = lm_eval.simple_evaluate(model, tasks=[f"spqt_{name}"], task_manager=tasks, bootstrap_iters=0, **options)
    return found["results"][f"spqt_{name}"] | {"samples": found["samples"][f"spqt_{name}"]}


def reference(tokens: list[int], count: int) -> tuple[float, bool]:
    """Log-likelihood of the last `count` tokens, and whether each is the likeliest, in float64."""
    container = tiny_containers.container("gqa")
    logits = llama_float64.forward(container.config, dict(container.weights()), tokens)[-count - 1 : -1]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = np.array(tokens[-count:])
    return logits[np.arange(count), wanted].sum(), bool((logits.argmax(-1) == wanted).all())


def test_multiple_choice(dense: SpqtLM, tasks: TaskManager) -> None:
    result, right = evaluate(dense, tasks, "choices"), 0
    for sample, row in zip(result["samples"], QUESTIONS, strict=True):
        expected = []
        for (((likelihood, greedy),),), choice in zip(zip(sample["resps"], strict=True), row["choices"], strict=True):
            context, whole = (dense.tok_encode(row["question"] + more) for more in ("", choice))
            expected.append(reference(whole, len(whole) - len(context)))
            assert (likelihood, greedy) == (pytest.approx(expected[-1][0], abs=1e-3), expected[-1][1])
        right += int(np.argmax([e[0] for e in expected])) == row["answer"]
    assert result["acc,none"] == pytest.approx(right / len(QUESTIONS))


def test_rolling(dense: SpqtLM, tasks: TaskManager) -> None:
    """The first text is longer than the context: every token is predicted once, with all that fits before it."""
    result = evaluate(dense, tasks, "perplexity")
    total = 0.0
    for text in TEXTS:
        ids = [dense.prefix_token_id, *dense.tok_encode(text)]
        first = min(len(ids), CONTEXT + 1)
        total += reference(ids[:first], first - 1)[0]
        for begin in range(first, len(ids), CONTEXT):
            end = min(begin + CONTEXT, len(ids))
            total += reference(ids[end - CONTEXT - 1 : end], end - begin)[0]
    words = sum(len(text.split()) for text in TEXTS)
    assert len(dense.tok_encode(TEXTS[0])) > CONTEXT
    assert result["word_perplexity,none"] == pytest.approx(np.exp(-total / words), rel=1e-3)


def test_generation(dense: SpqtLM, tasks: TaskManager) -> None:
    for sample, row in zip(evaluate(dense, tasks, "continue")["samples"], QUESTIONS, strict=True):
        whole = dense._model.generate(row["question"], max_new_tokens=12).text
        assert sample["resps"] == [[whole.split("o")[0]]]


def test_a_policy_counts(dense: SpqtLM, policy: Path, tasks: TaskManager) -> None:
    """Given by name, as on the harness's command line; every token sees what decoding would leave it."""
    arguments = {"model": tiny_containers.container("gqa").path, "policy": policy, "context": CONTEXT, "threads": 1}
    (first, *_) = evaluate("spqt", tasks, "choices", model_args=arguments)["samples"]
    whole = dense.tok_encode(QUESTIONS[0]["question"] + QUESTIONS[0]["choices"][0])
    model = tiny_containers.llama("gqa")
    SparsityPolicy.load(policy).apply(model)
    model.reset()
    logits = model.prefill(whole, "all", masked=True).astype(np.float64)
    model.selectors.clear()
    count = len(whole) - len(dense.tok_encode(QUESTIONS[0]["question"]))
    logits = logits[-count - 1 : -1]
    expected = (logits[np.arange(count), whole[-count:]] - np.log(np.exp(logits).sum(-1))).sum()
    assert first["resps"][0][0][0] == pytest.approx(expected, abs=0.02)
    assert abs(expected - reference(whole, count)[0]) > 0.1


def test_an_empty_context_and_one_too_long(dense: SpqtLM) -> None:
    ids = dense.tok_encode(TEXTS[0])
    assert dense._score([dense.prefix_token_id], ids[:9])[0] == pytest.approx(reference([0, *ids[:9]], 9)[0], abs=1e-3)
    kept = ids[-CONTEXT - 1 :]
    assert dense._score(ids[:-5], ids[-5:])[0] == pytest.approx(reference(kept, 5)[0], abs=1e-3)
    with pytest.raises(GenerationError, match="does not fit the context of 64"):
        dense._score([0], [1] * (CONTEXT + 1))


def test_what_is_refused(policy: Path, tmp_path: Path) -> None:
    path = tiny_containers.container("gqa").path
    with pytest.raises(GenerationError, match="not both"):
        SpqtLM(path, policy=policy, sparsity=0.4)
    SparsityPolicy("mine", 0.5, np.ones((2, 4), np.float32), "another").save(tmp_path / "p.json")
    with pytest.raises(PolicyError, match="made for model another"):
        SpqtLM(path, policy=tmp_path / "p.json", context=CONTEXT)


def test_chat_template(dense: SpqtLM) -> None:
    text = dense.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert text.endswith("<|im_start|>assistant\n")
    assert dense.tok_encode(text)[0] == 1  # the control token, not its spelling


def test_no_second_bos_after_a_template_that_writes_one(dense: SpqtLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(dense.tokenizer), "bos", property(lambda self: [0]))
    real = type(dense.tokenizer).encode

    def with_bos(self, text: str, *, parse_special: bool = False, add_special: bool = True) -> list[int]:
        return [0] * add_special + real(self, text, parse_special=parse_special, add_special=False)

    monkeypatch.setattr(type(dense.tokenizer), "encode", with_bos)
    assert dense.tok_encode("<|endoftext|>the fox")[:2].count(0) == 1
    assert dense.tok_encode("the fox")[:2].count(0) == 1
