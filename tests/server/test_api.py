"""The API by the official client, beside the model in the same process."""

from __future__ import annotations

import base64
import json
from importlib.util import find_spec
from typing import Any, Literal

import httpx
import numpy as np
import openai
import pydantic
import pytest
import served

from spqt_ti.api import Model
from spqt_ti.generation import overflow
from spqt_ti.server import requests
from spqt_ti.server.app import Server
from spqt_ti.sparsity.policy import SparsityPolicy

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
TEXT = "The quick brown"
constrained = pytest.mark.skipif(find_spec("llguidance") is None, reason="llguidance is not installed")


def form(schema: dict[str, Any]) -> dict[str, Any]:
    """The field that asks for JSON of a schema."""
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    rows = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


@pytest.mark.parametrize("more", [{"temperature": 0}, {"temperature": 0.9, "seed": 3, "top_p": 0.9}])
def test_chat_is_the_models_own(client: openai.OpenAI, model: Model, more: dict[str, Any]) -> None:
    expected = model.generate(MESSAGES, max_new_tokens=20, **more)
    found = client.chat.completions.create(model=served.NAME, messages=MESSAGES, max_tokens=20, **more)
    assert found.choices[0].message.content == expected.text
    assert found.choices[0].finish_reason == expected.finish_reason
    assert found.usage is not None
    assert found.usage.completion_tokens == len(expected.token_ids)
    assert found.usage.prompt_tokens == expected.stats.prompt_tokens
    assert found.usage.prompt_tokens_details.cached_tokens == expected.stats.prompt_tokens - 1  # of `generate` above


def test_dry_by_the_names_of_llama_server(client: openai.OpenAI, model: Model) -> None:
    dry: Any = {
        "dry_multiplier": 5.0, "dry_base": 2.0, "dry_allowed_length": 0, "dry_penalty_last_n": 20,
        "dry_sequence_breakers": ["q"],
    }  # fmt: skip
    asked: Any = {"model": served.NAME, "messages": MESSAGES, "max_tokens": 30, "temperature": 0}
    expected = model.generate(MESSAGES, max_new_tokens=30, **dry).text
    assert client.chat.completions.create(**asked, extra_body=dry).choices[0].message.content == expected
    assert client.chat.completions.create(**asked).choices[0].message.content != expected
    with pytest.raises(openai.BadRequestError, match="dry_base must be 1 or more"):
        client.chat.completions.create(**asked, extra_body={"dry_base": 0.5})


def test_streaming_has_the_same_text_and_the_usage_last(client: openai.OpenAI, model: Model) -> None:
    expected = model.generate(MESSAGES, max_new_tokens=12)
    asked: Any = {"model": served.NAME, "messages": MESSAGES, "max_tokens": 12, "temperature": 0, "stream": True}
    *events, last = client.chat.completions.create(**asked, stream_options={"include_usage": True})
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(event.choices[0].delta.content or "" for event in events) == expected.text
    assert [event.choices[0].finish_reason for event in events if event.choices[0].finish_reason] == ["length"]
    assert last.choices == []
    assert last.usage.completion_tokens == 12
    assert all(event.usage is None for event in client.chat.completions.create(**asked))


def test_several_answers_are_those_of_following_seeds(client: openai.OpenAI, model: Model) -> None:
    expected = [model.generate(TEXT, max_new_tokens=8, temperature=1.0, seed=seed).text for seed in (5, 6, 7)]
    found = client.completions.create(model=served.NAME, prompt=TEXT, max_tokens=8, n=3, seed=5)
    assert [choice.text for choice in found.choices] == expected
    assert [choice.index for choice in found.choices] == [0, 1, 2]


def test_stop_strings(client: openai.OpenAI, model: Model) -> None:
    whole = model.generate(TEXT, max_new_tokens=20).text
    stop = whole[6:8]
    found = client.completions.create(model=served.NAME, prompt=TEXT, max_tokens=20, temperature=0, stop=[stop])
    assert found.choices[0].text == whole.split(stop)[0]
    assert found.choices[0].finish_reason == "stop"


def test_log_probabilities_of_an_answer(client: openai.OpenAI, model: Model) -> None:
    asked: Any = {"model": served.NAME, "messages": MESSAGES, "max_tokens": 4, "temperature": 0}
    content = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    prompt = model.tokenizer.encode_chat(MESSAGES)
    new = model.generate(MESSAGES, max_new_tokens=4).token_ids
    rows = log_softmax(model.logits([*prompt, *new]))[len(prompt) - 1 : -1]
    for entry, row, token in zip(content, rows, new, strict=True):
        assert entry.logprob == pytest.approx(row[token], abs=1e-4)
        assert bytes(entry.bytes) == model.tokenizer.token_bytes(token, skip_special=False)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(np.sort(row)[::-1][:3], abs=1e-4)


@pytest.mark.parametrize("streamed", [False, True])
def test_log_probabilities_of_a_prompt(client: openai.OpenAI, model: Model, streamed: bool) -> None:
    ids = model.tokenizer.encode(TEXT)
    asked: Any = {"model": served.NAME, "prompt": ids, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    if streamed:
        parts = [event.choices[0] for event in client.completions.create(**asked, stream=True)]
    else:
        parts = list(client.completions.create(**asked).choices)
    logprobs = [value for part in parts for value in part.logprobs.token_logprobs]
    assert "".join(part.text for part in parts).startswith(TEXT)
    assert logprobs[0] is None
    rows = log_softmax(model.logits(ids))
    assert logprobs[1:-1] == pytest.approx([rows[at, token] for at, token in enumerate(ids[1:])], abs=1e-5)
    assert logprobs[-1] == pytest.approx(rows[-1].max(), abs=1e-4)
    words = [word for part in parts for word in part.logprobs.tokens]
    offsets = [offset for part in parts for offset in part.logprobs.text_offset]
    assert offsets == [len("".join(words[:at])) for at in range(len(words))]


def test_a_policy_scores_prompts_as_it_decodes(
    client: openai.OpenAI, model: Model, policy: SparsityPolicy
) -> None:  # fmt: skip
    ids = model.tokenizer.encode(TEXT)
    asked: Any = {"model": served.NAME, "prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}
    found = client.completions.create(**asked, extra_body={"spqt": {"policy": "mine"}}).choices[0]
    model.apply(policy)
    model.llama.thresholds[:] = policy.thresholds
    rows = log_softmax(model.logits(ids, mode="decode"))
    model.apply(None)
    assert found.logprobs.token_logprobs[1:] == pytest.approx(
        [rows[at, token] for at, token in enumerate(ids[1:])], abs=1e-3
    )
    assert found.text == TEXT
    dense = client.completions.create(**asked).choices[0].logprobs.token_logprobs
    assert dense[1:] != pytest.approx(found.logprobs.token_logprobs[1:], abs=1e-2)


@constrained
@pytest.mark.parametrize("streamed", [False, True])
def test_json_of_a_schema(client: openai.OpenAI, streamed: bool) -> None:
    schema: Any = {"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    asked: Any = {"model": served.NAME, "messages": MESSAGES, "max_tokens": 30, "n": 2, **form(schema)}
    if streamed:
        events = [event.choices[0] for event in client.chat.completions.create(**asked, stream=True)]
        texts = ["".join(one.delta.content or "" for one in events if one.index == index) for index in range(2)]
    else:
        texts = [choice.message.content for choice in client.chat.completions.create(**asked).choices]
    for text in texts:
        assert json.loads(text)["a"] in (1, 22)


@constrained
def test_the_official_client_parses_its_own_classes(client: openai.OpenAI) -> None:
    class Answer(pydantic.BaseModel):
        word: Literal["yes", "no"]
        sure: bool

    found = client.chat.completions.parse(
        model=served.NAME, messages=MESSAGES, max_tokens=40, temperature=0, response_format=Answer
    )  # fmt: skip
    parsed = found.choices[0].message.parsed
    assert isinstance(parsed, Answer)
    assert parsed.word in ("yes", "no")


@constrained
def test_any_json_object(client: openai.OpenAI) -> None:
    """It may be cut off, but it begins as one."""
    found = client.completions.create(
        model=served.NAME, prompt=TEXT, max_tokens=4, extra_body={"response_format": {"type": "json_object"}}
    )
    assert found.choices[0].text.startswith("{")


def test_a_window_that_slides(model: Model) -> None:
    said: Any = [{"role": "user" if turn % 2 == 0 else "assistant", "content": f"Say {turn}."} for turn in range(31)]
    kept = overflow.recent(said, model.tokenizer.encode_chat, 64)
    expected = model.generate(kept, max_new_tokens=90, on_overflow="slide")
    with served.served(model, on_overflow="slide") as (_, address):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        asked: Any = {"model": served.NAME, "max_tokens": 90, "temperature": 0}
        found = client.chat.completions.create(messages=said, **asked)
        assert found.choices[0].message.content == expected.text
        assert found.choices[0].finish_reason == expected.finish_reason
        assert found.spqt["slides"] == expected.stats.slides
        text = client.completions.create(prompt=[7] * 200, **asked)
        assert text.usage.prompt_tokens == 4 + 30
        with pytest.raises(openai.BadRequestError, match="do not fit"):
            client.completions.create(prompt=[7] * 200, **asked, echo=True)


def test_the_slider_and_the_heat_map(client: openai.OpenAI, model: Model) -> None:
    """What a request chooses holds for it alone, and the map has the shares of the last token."""
    dense = model.generate(MESSAGES, max_new_tokens=5)
    sparse_policy = model.calibrate().policy(0.5)
    model.apply(sparse_policy)
    sparse = model.generate(MESSAGES, max_new_tokens=5)
    model.apply(None)
    asked: Any = {"model": served.NAME, "messages": MESSAGES, "max_tokens": 5, "temperature": 0}
    body = {"spqt": {"sparsity": 0.5, "heat_map": True}}
    events = list(client.chat.completions.create(**asked, stream=True, extra_body=body))
    assert "".join(event.choices[0].delta.content or "" for event in events) == sparse.text
    maps = [event.spqt["skipped"] for event in events if getattr(event, "spqt", None)]
    assert len(maps) == 4
    assert np.shape(maps) == (4, 2, 4)
    if sparse.stats.realised_sparsity:
        assert 0.1 < np.mean(maps) < 0.9
    again = client.chat.completions.create(**asked)
    assert again.choices[0].message.content == dense.text
    assert again.spqt["realised_sparsity"] == 0


def test_a_shared_beginning_is_computed_once(client: openai.OpenAI, model: Model) -> None:
    model.llama.reset()
    model.logits([1, 2, 3])
    ids = model.tokenizer.encode(TEXT + " fox jumps over")
    cached = []
    for prompt in (ids, [*ids[:-2], 7, 8], ids):
        usage = client.completions.create(model=served.NAME, prompt=prompt, max_tokens=2, temperature=0).usage
        cached.append(usage.prompt_tokens_details.cached_tokens)
    assert cached[1:] == [len(ids) - 2, len(ids) - 2]


def test_tools_reach_the_template(client: openai.OpenAI, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = type(model.tokenizer).encode_chat
    monkeypatch.setattr(
        type(model.tokenizer), "encode_chat", lambda self, *a, **k: seen.append(k["tools"]) or real(self, *a, **k)
    )
    tools: Any = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
    for choice in ("auto", "none"):
        client.chat.completions.create(
            model=served.NAME, messages=MESSAGES, max_tokens=1, tools=tools, tool_choice=choice
        )  # fmt: skip
    assert seen == [tools, None]


def test_documents_reach_the_template(client: openai.OpenAI, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for d in documents or [] %}{{ d.text }}{% endfor %}{{ messages[-1].content }}"
    monkeypatch.setattr(model.tokenizer, "chat_template", template)
    monkeypatch.setattr(model.tokenizer, "_template", None)
    documents = [{"title": "a", "text": "The quick brown "}]
    asked: Any = {"model": served.NAME, "messages": MESSAGES, "max_tokens": 1, "extra_body": {"documents": documents}}
    used = client.chat.completions.create(**asked).usage.prompt_tokens
    assert (
        used
        == len(model.tokenizer.encode_chat(MESSAGES, documents=documents))
        > len(model.tokenizer.encode_chat(MESSAGES))
    )
    monkeypatch.setattr(model.tokenizer, "chat_template", "{{ messages[-1].content }}")
    monkeypatch.setattr(model.tokenizer, "_template", None)
    with pytest.raises(openai.BadRequestError, match="no place for documents"):
        client.chat.completions.create(**asked)


def test_embeddings(client: openai.OpenAI, address: str, model: Model) -> None:
    """The client asks for base64 unless told otherwise."""
    texts = [TEXT, "jumps over"]
    expected = model.embed(texts)
    tokens = [model.tokenizer.encode(text) for text in texts]
    for given in (texts, tokens):
        found = client.embeddings.create(model=served.NAME, input=given)
        assert [one.index for one in found.data] == [0, 1]
        np.testing.assert_array_equal(np.array([one.embedding for one in found.data], np.float32), expected)
        assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, tokens))
    for one in (texts[1], tokens[1]):
        found = client.embeddings.create(model=served.NAME, input=one, encoding_format="float")
        np.testing.assert_array_equal(np.array(found.data[0].embedding, np.float32), expected[1])
    raw = httpx.post(f"{address}/v1/embeddings", json={"input": TEXT, "encoding_format": "base64"}).json()
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4"), expected[0])


def test_embeddings_of_the_last_token(model: Model) -> None:
    with served.served(model, pooling="last") as (_, address):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        found = client.embeddings.create(model=served.NAME, input=TEXT).data[0].embedding
    np.testing.assert_array_equal(np.array(found, np.float32), model.embed(TEXT, pooling="last"))


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"input": ""}, 400, "the input is empty"),
        ({"input": []}, 400, "the input is empty"),
        ({"input": ["a"] * 2049}, 400, "input has 2049 texts"),
        ({"input": ["a", [1], 3]}, 400, "or a list of these"),
        ({"input": [1, 99999]}, 400, "outside the vocabulary"),
        ({"input": [1] * 65}, 400, "65 tokens do not fit the context of 64"),
        ({"input": "a", "dimensions": 8}, 400, "embeddings have 192 dimensions, not 8"),
        ({"input": "a", "encoding_format": "f16"}, 400, "Invalid enum value 'f16'"),
        ({"input": "a", "model": "another"}, 404, "there is no model 'another' here"),
    ],
)
def test_embeddings_that_are_refused(address: str, body: dict[str, Any], status: int, message: str) -> None:
    found = httpx.post(f"{address}/v1/embeddings", json=body)
    assert (found.status_code, message in found.json()["error"]["message"]) == (status, True), found.text


def test_tokens_and_back(address: str, model: Model) -> None:
    info = httpx.get(f"{address}/tokenizer_info").json()
    assert info["eos_token"] == model.tokenizer.special_names["eos_token"]
    ids = httpx.post(f"{address}/tokenize", json={"prompt": TEXT + "<|im_end|>"}).json()["tokens"]
    assert ids == model.tokenizer.encode(TEXT + "<|im_end|>", parse_special=True)
    assert httpx.post(f"{address}/detokenize", json={"tokens": ids}).json()["prompt"] == TEXT + "<|im_end|>"
    chat = httpx.post(f"{address}/v1/tokenize", json={"messages": MESSAGES}).json()
    assert chat["tokens"] == model.tokenizer.encode_chat(MESSAGES)
    assert chat["max_model_len"] == 64


def test_models_and_health(client: openai.OpenAI, address: str) -> None:
    (found,) = client.models.list().data
    assert client.models.retrieve(served.NAME).id == found.id == served.NAME
    assert found.spqt["policies"] == ["mine"]
    assert httpx.get(f"{address}/health").json()["status"] == "ok"
    assert httpx.get(f"{address}/nothing").status_code == 404
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


@pytest.mark.parametrize(
    ("path", "changes", "status", "message"),
    [
        ("chat/", {"model": "another"}, 404, "there is no model 'another' here, only 'tiny'"),
        ("chat/", {"messages": []}, 400, "messages is empty"),
        ("chat/", {"messages": [{"role": "user"}, 3]}, 400, "Expected `object`"),
        ("chat/", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "parts of type text"),
        ("chat/", {"response_format": {"type": "xml"}}, 400, "text, json_object or json_schema, not 'xml'"),
        ("chat/", {"response_format": {"type": "json_schema"}}, 400, "json_schema.schema is missing"),
        pytest.param("chat/", form({"type": "foo"}), 400, "followed: Invalid type: foo", marks=constrained),
        pytest.param("", {"prompt": "a", **form({"not": {}})}, 400, "Unimplemented keys", marks=constrained),
        ("chat/", {"top_logprobs": 2}, 400, "needs logprobs"),
        ("chat/", {"temperatur": 1}, 400, "unknown field `temperatur`"),
        ("chat/", {"temperature": -1}, 400, "temperature must be 0 or more"),
        ("chat/", {"temperature": "hot"}, 400, "Expected `float | null`"),
        ("chat/", {"max_tokens": 61}, 400, "between 1 and 60"),
        ("chat/", {"n": 0}, 400, "n must be between 1 and 128"),
        ("chat/", {"logit_bias": {"x": 1}}, 400, "token ids"),
        ("chat/", {"logit_bias": {"99999": 1}}, 400, "outside the vocabulary"),
        ("chat/", {"logit_bias": {"9" * 5000: 1}}, 400, "token ids"),
        ("chat/", {"tools": [{}] * 129}, 400, "there may be 128 tools, not 129"),
        ("chat/", {"documents": ["a text"]}, 400, "Expected `object`, got `str`"),
        ("chat/", {"spqt": {"policy": "yours"}}, 400, "there are: mine"),
        ("chat/", {"spqt": {"sparsity": 40}}, 400, "did you mean 0.4"),
        ("chat/", {"spqt": {"sparsity": 0.4, "policy": "mine"}}, 400, "not both"),
        ("", {"prompt": ""}, 400, "the prompt is empty"),
        ("", {"prompt": []}, 400, "empty"),
        ("", {"prompt": ["a", 3]}, 400, "or a list of these"),
        ("", {"prompt": [1, 99999]}, 400, "outside the vocabulary"),
        ("", {"prompt": [1] * 65}, 400, "65 tokens do not fit the context of 64"),
        ("", {"prompt": "a", "best_of": 2}, 400, "best_of is not supported"),
        ("", {"prompt": "a", "suffix": "b"}, 400, "suffix is not supported"),
        ("", {"prompt": "a", "logprobs": 21}, 400, "0 to 20 logprobs"),
        ("", {"prompt": ["a"] * 129}, 400, "129 prompts"),
        ("", {"prompt": "a" * 20_001}, 413, "20000 bytes"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused(
    address: str, path: str, changes: dict[str, Any], status: int, message: str, stream: bool
) -> None:  # fmt: skip
    body = {"model": served.NAME, "stream": stream, **({"messages": MESSAGES} if path else {}), **changes}
    found = httpx.post(f"{address}/v1/{path}completions", json=body)
    assert (found.status_code, message in found.json()["error"]["message"]) == (status, True), found.text


def test_log_probabilities_of_prompts_are_bounded(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MOST_ECHOED", 100)
    body = {"prompt": [[5] * 9, [5]], "n": 2, "echo": True, "logprobs": 5}
    found = httpx.post(f"{address}/v1/completions", json=body)
    assert (found.status_code, "120 log-probabilities of prompts, of 100" in found.text) == (400, True)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"messages": ' + b"[" * 9000])
def test_bodies_that_are_no_requests(address: str, body: bytes) -> None:
    found = httpx.post(f"{address}/v1/chat/completions", content=body)
    assert found.status_code == 400
    assert json.loads(found.text)["error"]["type"] == "invalid_request_error"


def test_nothing_was_lost(server: Server, address: str) -> None:
    """After all of the above."""
    served.until(lambda: not server.engine.busy and server.engine.waiting == 0)
    assert set(served.outcomes(address)) <= {"answered", "failed"}
