"""Bodies of requests, checked by type. Names and meanings are those of OpenAI's API, and of vLLM where it adds some."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal, TypeVar

import msgspec

from spqt_ti.bounded_json import JsonError, parse_object
from spqt_ti.generation.constraint import Constraint
from spqt_ti.generation.sampling import Sampling, field_names
from spqt_ti.generation.tool_calls import names_of
from spqt_ti.server.errors import ApiError

MOST_LOGPROBS = 20
MOST_TOOLS = 128  # as OpenAI has it
_DRY = tuple(name for name in field_names() if name.startswith("dry_"))  # llama-server has the same names
Body = TypeVar("Body")


class ToolChoice(str, Enum):
    """Whether an answer may call tools: `tool_choice` of a request."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`include_usage`: a last piece with the counts of tokens."""

    include_usage: bool = False
    include_obfuscation: bool = False  # nothing is padded; the official client may send it


class Skipping(msgspec.Struct, forbid_unknown_fields=True):
    """The field `spqt`: how this request skips weights.

    `sparsity`: uniform, at this level; `policy`: one of those the server was started with; neither: as the server was
    started. `heat_map`: each piece has the shares of inputs skipped for its last token, [layers][4].
    """

    sparsity: float | None = None
    policy: str | None = None
    heat_map: bool = False


class Asked(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What both kinds of completions take. Names in the last block are taken and change nothing here."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = 1
    stop: str | list[str] | None = None
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = 1.0
    frequency_penalty: float | None = 0.0
    presence_penalty: float | None = 0.0
    logit_bias: dict[str, float] | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None
    seed: int | None = None
    spqt: Skipping | None = None

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    def sampling(self, seed: int) -> Sampling:
        """How tokens are drawn; `seed`: where the request has none. Raises GenerationError for values out of range."""
        bias = self.logit_bias or {}
        if not all(token.isascii() and token.isdecimal() and len(token) < 10 for token in bias):
            raise ApiError(400, "logit_bias maps token ids to numbers", param="logit_bias")
        dry = {name: value for name in _DRY if (value := getattr(self, name)) is not None}
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=None if self.top_k in (None, 0, -1) else self.top_k,
            top_p=None if self.top_p in (None, 1.0) else self.top_p,
            min_p=self.min_p or None,
            typical_p=None if self.typical_p in (None, 1.0) else self.typical_p,
            seed=seed if self.seed is None else self.seed % (1 << 63),
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias={int(token): value for token, value in bias.items()},
            **dry,
        )


class ChatCompletion(Asked, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    documents: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None


class Completion(Asked, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/completions. `logprobs`: how many likeliest tokens come with each; with `echo` of the prompt's, too."""

    prompt: str | list[str | int | list[int]]  # a text, its tokens, or a list of either
    max_tokens: int | None = 16
    echo: bool | None = False
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None
    response_format: dict[str, Any] | None = None


class Embeddings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/embeddings. `user` changes nothing."""

    input: str | list[str | int | list[int]]  # a text, its tokens, or a list of either
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    user: Any = None


class Tokenize(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /tokenize, of a text or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class Detokenize(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


def parsed(body: bytes, kind: type[Body]) -> Body:
    """A body of this kind. Raises ApiError, 400, that says what is wrong with any other."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the request is not understood: {error}") from error
    except RecursionError as error:
        raise ApiError(400, "the request is nested too deeply") from error


def check(asked: ChatCompletion | Completion, model: str, choices: int) -> None:
    """Refuse what the server does not do. Raises ApiError. `choices`: the most answers."""
    check_model(asked.model, model)
    if asked.n is not None and not 1 <= asked.n <= choices:
        raise ApiError(400, f"n must be between 1 and {choices}, not {asked.n}", param="n")
    if isinstance(asked, ChatCompletion):
        choice, _ = tool_choice(asked)
        if choice is ToolChoice.REQUIRED and asked.response_format not in (None, {"type": "text"}):
            raise ApiError(400, "an answer that has to be a call has no response_format", param="response_format")
        if asked.top_logprobs is not None and not asked.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs", param="top_logprobs")
        most = asked.top_logprobs
    else:
        if asked.best_of not in (None, asked.n):
            raise ApiError(400, "best_of is not supported: ask for n", param="best_of")
        if asked.suffix:
            raise ApiError(400, "suffix is not supported", param="suffix")
        most = asked.logprobs
    if most is not None and not 0 <= most <= MOST_LOGPROBS:
        raise ApiError(400, f"there may be 0 to {MOST_LOGPROBS} logprobs per token, not {most}", param="logprobs")


def tool_choice(asked: ChatCompletion) -> tuple[ToolChoice, str | None]:
    """The choice, and the function that has to be called. Raises ApiError for other choices, and where there is no
    such tool.
    """
    choice = asked.tool_choice
    if len(asked.tools or []) > MOST_TOOLS:
        raise ApiError(400, f"there may be {MOST_TOOLS} tools, not {len(asked.tools or [])}", param="tools")
    names = names_of(asked.tools or [])
    if choice in (None, ToolChoice.AUTO, ToolChoice.NONE):
        return ToolChoice(choice or ToolChoice.AUTO) if names else ToolChoice.NONE, None
    named = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = named.get("name") if isinstance(named, dict) else None
    if choice != ToolChoice.REQUIRED and not isinstance(name, str):
        shape = '{"type": "function", "function": {"name": ...}}'
        raise ApiError(400, f"tool_choice is none, auto, required or {shape}", param="tool_choice")
    if not names or (name is not None and name not in names):
        what = f"no tool {name[:64]!r}" if name else "nothing to call"
        raise ApiError(400, f"tool_choice: there is {what} in tools", param="tool_choice")
    return ToolChoice.REQUIRED, name


def constraint_of(form: dict[str, Any] | None) -> Constraint | None:
    """What answers have to be by a `response_format`: {"type": "text" or "json_object"}, or {"type": "json_schema",
    "json_schema": {"schema": {...}}}. Raises ApiError and GenerationError for others and for schemas not supported.
    """
    kind = (form or {"type": "text"}).get("type")
    if form is None or kind == "text":
        return None
    if kind == "json_object":
        return Constraint.json_object()
    if kind != "json_schema":
        raise ApiError(
            400, f"response_format is text, json_object or json_schema, not {kind!r}", param="response_format"
        )
    named = form.get("json_schema")
    found = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(found, dict):
        raise ApiError(400, "response_format.json_schema.schema is missing, or no object", param="response_format")
    return Constraint.json_schema(found)


def check_model(asked: str | None, model: str) -> None:
    """Raise ApiError where another model is asked for."""
    if asked is not None and asked != model:
        raise ApiError(404, f"there is no model {asked[:100]!r} here, only {model!r}", "model_not_found", "model")


def plain_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose content is text: parts of text are joined. Raises ApiError for images and other parts."""
    if not messages:
        raise ApiError(400, "messages is empty", param="messages")
    return [{**_with_objects(message), "content": _text_of(message.get("content"))} for message in messages]


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose calls of tools have their arguments as templates want them: an object, not its text."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    try:
        objects = [
            {**call, "function": {**call["function"], "arguments": _object_of(call["function"]["arguments"])}}
            for call in calls
        ]
    except (TypeError, KeyError, JsonError) as error:
        shape = '{"id": ..., "type": "function", "function": {"name": ..., "arguments": "{...}"}}'
        raise ApiError(400, f"a message's tool_calls are a list of {shape}", param="messages") from error
    return {**message, "tool_calls": objects}


def _object_of(arguments: Any) -> dict[str, Any]:
    if isinstance(arguments, dict):
        return arguments
    if not isinstance(arguments, str):
        raise TypeError(f"arguments are text, not {type(arguments).__name__}")
    return parse_object(arguments or "{}")


def _text_of(content: Any) -> str:
    if content is None:  # an assistant's message that only calls tools
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ApiError(400, "a message's content is text, or parts of type text", param="messages")
    return "".join(part["text"] for part in parts)
