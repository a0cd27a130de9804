"""Bodies of requests to the server, as far as the engine: parsed, checked and encoded, or answered with an error."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from fuzz.mutate import json_bytes
from fuzz.target import CONFIG, Target, named, of_content, parts, small_tokenizer_json
from tiny_models import CHAT_TEMPLATE

from spqt_ti.errors import GenerationError, ServerError
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.server import schema
from spqt_ti.server.errors import ApiError, response_to
from spqt_ti.server.requests import Orders
from spqt_ti.server.settings import Settings

MESSAGES = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]
MORE = {
    "model": "m", "stream": True, "stream_options": {"include_usage": True}, "n": 2, "stop": ["a", "b"], "seed": 7,
    "temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "logit_bias": {"5": 1.5}, "max_tokens": 9,
    "spqt": {"sparsity": 0.4, "heat_map": True},
}  # fmt: skip
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", 1]}}, "required": ["a"]}
FORM = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}
TOOLS = {"tools": [{"type": "function", "function": {"name": "now", "parameters": {}}}], "tool_choice": "auto"}
BODIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("chat", {"messages": MESSAGES, **MORE}),
    ("chat", {"messages": MESSAGES, "logprobs": True, "top_logprobs": 3, **TOOLS}),
    ("chat", {"messages": MESSAGES, **FORM}),
    ("text", {"prompt": ["the fox", [1, 2, 3]], "echo": True, "logprobs": 2, **MORE}),
    ("text", {"prompt": [1, 2], "repetition_penalty": 1.1, "presence_penalty": 1, "max_tokens": 3}),
    ("tokenize", {"prompt": "the fox<|im_end|>", "add_special_tokens": False}),
    ("tokenize", {"messages": MESSAGES}),
    ("detokenize", {"tokens": [1, 2, 30]}),
)


def prepare(folder: Path) -> Target:
    del folder
    tokenizer = Tokenizer(small_tokenizer_json(), CONFIG, CHAT_TEMPLATE)
    llama = cast("Any", SimpleNamespace(config=CONFIG, context=64))
    orders = Orders(tokenizer, llama, Settings("m", choices=8))

    def answer(kind: str, body: bytes) -> None:
        if kind == "tokenize":
            asked = schema.parsed(body, schema.Tokenize)
            if asked.messages is not None:
                orders.encode_chat(asked.messages, asked.add_generation_prompt)
            orders.encode(asked.prompt or "", asked.add_special_tokens)
        elif kind == "detokenize":
            orders.decode(schema.parsed(body, schema.Detokenize).tokens)
        elif kind == "chat":
            chat = schema.parsed(body, schema.ChatCompletion)
            schema.check(chat, "m", 8)
            orders.chat(chat)
        else:
            text = schema.parsed(body, schema.Completion)
            schema.check(text, "m", 8)
            orders.text(text)

    def read(raw: bytes) -> None:
        try:
            answer(*parts(raw))
        except (ApiError, GenerationError) as error:
            response = response_to(error)
            assert 400 <= response.status_code < 500
            raise ServerError(json.loads(response.body)["error"]["message"]) from error

    seeds = tuple(named(kind, json.dumps(body).encode()) for kind, body in BODIES)
    return Target(seeds, of_content(json_bytes), read)
