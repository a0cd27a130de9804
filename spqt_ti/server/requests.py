"""From the body of a request to an order for the engine."""

from __future__ import annotations

import functools
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from spqt_ti import checks
from spqt_ti.generation.answer import checked_stops
from spqt_ti.generation.constraint import Constraint
from spqt_ti.generation.overflow import SINKS, fitting, recent, start_of
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.generation.tool_calls import FORMS, Form, form_of, must_call
from spqt_ti.model.runner import Llama, too_long
from spqt_ti.server import schema
from spqt_ti.server.errors import ApiError
from spqt_ti.server.orders import EmbeddingOrder, Order, Skip, Tools
from spqt_ti.server.schema import ToolChoice
from spqt_ti.server.settings import Settings

MOST_INPUTS = 2048  # of a request for embeddings, as OpenAI has it
MOST_ECHOED = 1 << 20  # log-probabilities of echoed prompts: a response has about 100 bytes for each


class Orders:
    """Makes orders. May be used from several threads; the tokenizer is held one at a time."""

    def __init__(self, tokenizer: Tokenizer, llama: Llama, settings: Settings) -> None:
        self._tokenizer, self._settings = tokenizer, settings
        self._vocab, self._context = llama.config.vocab_size, llama.context
        self._hidden = llama.config.hidden_size
        self._positions = llama.config.max_position_embeddings
        self._lock = threading.Lock()

    def chat(self, asked: schema.ChatCompletion) -> Order:
        """Raises ApiError and GenerationError for what cannot be answered."""
        choice, name = schema.tool_choice(asked)
        tools = None if choice is ToolChoice.NONE else asked.tools
        calls, constraint = self._calls(asked, choice, name)
        if asked.documents and not self._shows(asked.messages, documents=asked.documents):
            raise ApiError(400, "this model's chat template has no place for documents", param="documents")
        encode = functools.partial(self.encode_chat, add_generation_prompt=True, tools=tools, documents=asked.documents)
        messages, keep = self._recent(asked.messages, encode)
        prompt = encode(messages)
        count = asked.max_completion_tokens if asked.max_tokens is None else asked.max_tokens
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        order = self._order(asked, [prompt], count, logprobs, echo=False, continues=False, keep=keep)
        return replace(order, tools=calls, constraint=constraint or order.constraint)

    def _calls(
        self, asked: schema.ChatCompletion, choice: ToolChoice, name: str | None
    ) -> tuple[Tools | None, Constraint | None]:
        """Which calls of tools to look for in answers, and what answers have to be for them. Raises ApiError where a
        call is required of a model that is not known to make any.
        """
        tools = asked.tools or []
        form = form_of(self._tokenizer.chat_template)
        if choice is ToolChoice.NONE or (choice is ToolChoice.AUTO and form is None):
            return None, None
        several = asked.parallel_tool_calls
        names = tuple(schema.names_of(tools))
        if choice is ToolChoice.AUTO:
            assert form is not None
            return Tools(form, names, 1 if several is False else None), None
        if form is None or not self._shows(asked.messages, tools=tools):
            raise ApiError(400, f"tool_choice: this model's chat template {self._lacks(form)}", param="tool_choice")
        chosen = [tool for tool, its in zip(tools, names, strict=True) if name in (None, its)][: 1 if name else None]
        constraint = must_call(form, chosen, self._tokenizer, several=bool(several) and name is None)
        return Tools(form, names, None if several and name is None else 1, name is not None), constraint

    def _shows(self, messages: list[dict[str, Any]], **given: list[dict[str, Any]]) -> bool:
        """True where the template has a place for these `tools` or `documents`."""
        return self.encode_chat(messages, True, **given) != self.encode_chat(messages, True)

    def _lacks(self, form: Form | None) -> str:
        known = ", ".join(form.title for form in FORMS)
        return "has no place for tools" if form else f"writes no calls in a form that is known here ({known})"

    def text(self, asked: schema.Completion) -> Order:
        """Raises ApiError and GenerationError for what cannot be answered."""
        many = _prompts(asked.prompt, "prompt")
        if len(many) * (asked.n or 1) > self._settings.choices:
            raise ApiError(400, f"{len(many)} prompts with n={asked.n}, of {self._settings.choices} answers at most")
        prompts = [self._tokens(prompt) for prompt in many]
        if asked.echo and asked.logprobs is not None:
            echoed = sum(map(len, prompts)) * (asked.n or 1) * (asked.logprobs + 1)
            if echoed > MOST_ECHOED:
                message = f"{echoed} log-probabilities of prompts, of {MOST_ECHOED} at most: send fewer prompts at once"
                raise ApiError(400, message, param="logprobs")
        count = 16 if asked.max_tokens is None else asked.max_tokens
        keep = SINKS if self._settings.on_overflow == "slide" else None
        return self._order(asked, prompts, count, asked.logprobs, echo=bool(asked.echo), continues=True, keep=keep)

    def embeddings(self, asked: schema.Embeddings) -> EmbeddingOrder:
        """Raises ApiError and GenerationError for what cannot be embedded."""
        many = _prompts(asked.input, "input")
        if len(many) > MOST_INPUTS:
            raise ApiError(400, f"input has {len(many)} texts, of {MOST_INPUTS} at most", param="input")
        if asked.dimensions not in (None, self._hidden):
            message = f"this model's embeddings have {self._hidden} dimensions, not {asked.dimensions}"
            raise ApiError(400, message, param="dimensions")
        tokens = [self._fits(self._tokens(prompt), None, "input") for prompt in many]
        return EmbeddingOrder(tokens, self._settings.pooling)

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids of a text in which control tokens may be spelled out. One that begins with BOS gets no second."""
        checks.text("the prompt", text)
        with self._lock:
            bos = self._tokenizer.bos
            begun = self._tokenizer.encode(text, parse_special=True, add_special=False)
            if not add_special or (bos and begun[: len(bos)] == bos):
                return begun
            return self._tokenizer.encode(text, parse_special=True)

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
    ) -> list[int]:
        """Token ids of a conversation."""
        plain = schema.plain_messages(messages)
        with self._lock:
            return self._tokenizer.encode_chat(
                plain, add_generation_prompt=add_generation_prompt, tools=tools, documents=documents
            )

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, control tokens spelled out."""
        return self._tokenizer.decode(tokens, skip_special=False)

    def _order(
        self,
        asked: schema.ChatCompletion | schema.Completion,
        prompts: list[list[int]],
        count: int | None,
        logprobs: int | None,
        *,
        echo: bool,
        continues: bool,
        keep: int | None,
    ) -> Order:
        skipping = asked.spqt or schema.Skipping()
        if skipping.sparsity is not None and skipping.policy is not None:
            raise ApiError(400, "give spqt.sparsity or spqt.policy, not both", param="spqt")
        return Order(
            [self._fits(prompt, None if echo else keep) for prompt in prompts],
            self._count(count, 0 if echo else 1),
            asked.sampling(secrets.randbits(32)),
            asked.n or 1,
            checked_stops(asked.stop),
            logprobs,
            echo,
            continues,
            skipping.heat_map,
            Skip(skipping.policy, skipping.sparsity),
            schema.constraint_of(asked.response_format),
            keep,
        )

    def _count(self, count: int | None, least: int) -> int:
        most = self._settings.max_tokens
        if count is None:
            return most
        if not least <= count <= most:
            raise ApiError(400, f"max_tokens must be between {least} and {most}, not {count}", param="max_tokens")
        return count

    def _tokens(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return self.encode(prompt)
        return [int(token) for token in checks.token_ids(prompt, self._vocab)]

    def _recent(
        self, messages: list[dict[str, Any]], encode_chat: Callable[[list[Any]], list[int]]
    ) -> tuple[list[dict[str, Any]], int | None]:
        """What of a conversation is answered, and how many tokens a sliding window begins with."""
        if self._settings.on_overflow == "stop":
            return messages, None
        plain = schema.plain_messages(messages)

        def encode(some: Any) -> list[int]:
            return encode_chat(list(some))

        kept = recent(plain, encode, self._context)
        return [dict(message) for message in kept], start_of(kept, encode)

    def _fits(self, prompt: list[int], keep: int | None, param: str = "prompt") -> list[int]:
        """A prompt, or the window of it where one that is too long loses its middle."""
        if not prompt:
            raise ApiError(400, f"the {param} is empty", param=param)
        if keep is not None:
            return fitting(prompt, keep, self._context)
        if len(prompt) > self._context:
            message = too_long(len(prompt), self._context, self._positions)
            raise ApiError(400, message, "context_length_exceeded", param)
        return prompt


def _prompts(given: str | list[str | int | list[int]], param: str) -> list[Any]:
    """A text, its tokens, or a list of either, as a list. Raises ApiError for none, and for a mixture of
    texts and tokens."""
    if not given:
        raise ApiError(400, f"the {param} is empty", param=param)
    if isinstance(given, str) or all(isinstance(part, int) for part in given):
        return [given]
    if any(isinstance(part, int) for part in given):
        raise ApiError(400, f"{param} is a text, a list of token ids, or a list of these", param=param)
    return list(given)
