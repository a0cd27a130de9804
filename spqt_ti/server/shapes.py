"""Responses in the shapes of OpenAI's API."""

from __future__ import annotations

import base64
import dataclasses
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.generation.tool_calls import ToolCall
from spqt_ti.server.orders import Embedding, Piece, Token, Usage

Json = dict[str, Any]


def usage_of(usage: Usage) -> Json:
    """Counts of tokens; those that the KV cache had are in OpenAI's `cached_tokens`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.reused_tokens},
    }


def embeddings_of(found: Sequence[Embedding], usage: Usage, model: str, encoding: str | None) -> Json:
    """The response to a request for embeddings; `encoding`: "base64" writes f32 in little-endian order."""
    entries = [{"object": "embedding", "index": one.index, "embedding": _values(one, encoding)} for one in found]
    counts = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
    return {"object": "list", "data": entries, "model": model, "usage": counts}


def _values(one: Embedding, encoding: str | None) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(one.values.astype("<f4").tobytes()).decode()
    return one.values.tolist()


def cost_of(usage: Usage) -> Json:
    """The extension `spqt`: what decoding cost."""
    return {
        "tokens_per_second": usage.decoded / usage.decode_seconds if usage.decode_seconds else 0.0,
        "first_token_seconds": usage.first_token_seconds,
        "realised_sparsity": usage.sparsity,
        "bytes_per_token": usage.bytes_per_token,
        "cut_by_time": usage.cut_by_time,
        "slides": usage.slides,
    }


@dataclass
class Shape:
    """Builds the responses to one request. `chat`: of which of the two APIs; `logprobs`: whether there are some."""

    tokenizer: Tokenizer
    model: str
    chat: bool
    logprobs: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    lengths: dict[int, int] = field(default_factory=dict)  # characters so far, by choice
    calls: dict[int, int] = field(default_factory=dict)  # of tools so far, by choice

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> Json:
        """The response that is not streamed."""
        choices = [self._choice(joined) for joined in _joined(pieces)]
        return {**self._head(stream=False), "choices": choices, "usage": usage_of(usage), "spqt": cost_of(usage)}

    def first(self, index: int) -> Json:
        """The event before a chat's first piece: it names the role."""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self._head(stream=True), "choices": [choice]}

    def event(self, piece: Piece) -> Json:
        """The event of a piece."""
        body = {**self._head(stream=True), "choices": [self._choice(piece, "delta")]}
        if piece.skipped is not None:
            body["spqt"] = {"skipped": piece.skipped}
        return body

    def last(self, usage: Usage) -> Json:
        """The event with counts."""
        return {**self._head(stream=True), "choices": [], "usage": usage_of(usage), "spqt": cost_of(usage)}

    def _head(self, stream: bool) -> Json:
        kind = ("chat.completion.chunk" if stream else "chat.completion") if self.chat else "text_completion"
        prefix = "chatcmpl-" if self.chat else "cmpl-"
        return {"id": prefix + self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, piece: Piece, content: str = "message") -> Json:
        choice: Json = {"index": piece.index, "finish_reason": piece.finish_reason, "logprobs": None}
        if self.chat:
            choice[content] = self._delta(piece) if content == "delta" else self._message(piece)
            if self.logprobs:
                choice["logprobs"] = {"content": [self._entry(token) for token in piece.tokens], "refusal": None}
        else:
            choice["text"] = piece.text
            if self.logprobs:
                choice["logprobs"] = self._lists(piece)
        return choice

    def _message(self, piece: Piece) -> Json:
        calls = [_call(call) for call in piece.calls]
        text = piece.text if piece.text or not calls else None
        return {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}

    def _delta(self, piece: Piece) -> Json:
        first = self.calls.get(piece.index, 0)
        self.calls[piece.index] = first + len(piece.calls)
        calls = [{"index": number, **_call(call)} for number, call in enumerate(piece.calls, first)]
        return {"content": piece.text, **({"tool_calls": calls} if calls else {})}

    def _entry(self, token: Token) -> Json:
        """A token in chat's form."""
        top = [{**self._named(one), "logprob": logprob} for one, logprob in token.top]
        return {**self._named(token.id), "logprob": token.logprob, "top_logprobs": top}

    def _named(self, token: int) -> Json:
        raw = self.tokenizer.token_bytes(token, skip_special=False)
        return {"token": _word(raw), "bytes": list(raw)}

    def _lists(self, piece: Piece) -> Json:
        """Tokens in the form of the older API: lists side by side. The likeliest ones include the token itself."""
        lists: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        at = self.lengths.get(piece.index, 0)
        for token in piece.tokens:
            word = self._named(token.id)["token"]
            top = {self._named(one)["token"]: logprob for one, logprob in reversed(token.top)}
            if token.logprob is not None:
                top.setdefault(word, token.logprob)
            lists["tokens"].append(word)
            lists["token_logprobs"].append(token.logprob)
            lists["top_logprobs"].append(top if token.logprob is not None else None)
            lists["text_offset"].append(at)
            at += len(word)
        self.lengths[piece.index] = at
        return lists


def _call(call: ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _word(raw: bytes) -> str:
    """A token as text; bytes that are only part of a character as OpenAI writes them."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """One piece per choice, in order."""
    found: dict[int, list[Piece]] = {}
    for piece in pieces:
        found.setdefault(piece.index, []).append(piece)
    return [
        dataclasses.replace(
            parts[-1],
            text="".join(part.text for part in parts),
            tokens=tuple(token for part in parts for token in part.tokens),
            calls=tuple(call for part in parts for call in part.calls),
        )
        for _, parts in sorted(found.items())
    ]
