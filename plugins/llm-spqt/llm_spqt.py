"""Models of spqt-ti for the llm command (https://llm.datasette.io)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import llm
from llm.parts import TextPart
from pydantic import Field

import spqt_ti
from spqt_ti.api import check_level
from spqt_ti.errors import SpqtError
from spqt_ti.sources.registry import KNOWN
from spqt_ti.sparsity.shared_policies import find_policy


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """`spqt` for a model by `-o model`, and `spqt/NAME` for each that `spqt pull` knows."""
    register(AnyModel())
    for name in KNOWN:
        register(KnownModel(name))


class Options(llm.Options):
    """What all models take; defaults are those of `spqt_ti.Model.stream` but for `max_tokens`."""

    max_tokens: int = Field(512, ge=1, description="Most new tokens")
    sparsity: float | str = Field(0.0, description="Level of activation sparsity (0 to 0.99), or a policy")
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    top_p: float | None = Field(None, description="Draw from the likeliest tokens of this total probability")
    top_k: int | None = Field(None, description="Draw from this many tokens")
    min_p: float | None = Field(None, description="Draw from tokens of at least this share of the likeliest one's")
    repetition_penalty: float | None = Field(None, description="Divides logits of tokens that were there; 1 is none")
    seed: int | None = Field(None, description="Of the draws")
    stop: str | None = Field(None, description="End the answer before this text")
    context: int | None = Field(None, description="Positions of the KV cache")
    threads: int | None = Field(None, description="Worker threads of the CPU")


class NamedOptions(Options):
    """With the model's name."""

    model: str = Field("smollm2-135m", description="Known name, hub id, or path of a model")


@functools.lru_cache(maxsize=1)
def loaded(name: str, context: int | None, threads: int | None) -> spqt_ti.Model:
    """The model, kept until another is asked for: its KV cache serves the next turn."""
    return spqt_ti.load(name, context=context, threads=threads)


def be_sparse(model: spqt_ti.Model, sparsity: float | str) -> None:
    """Decode at a level, or by a policy."""
    try:
        level = check_level(float(sparsity))
    except ValueError:  # no number: a policy's name
        model.apply(find_policy(sparsity))
    else:
        model.apply(model.calibrate().policy(level) if level else None)


def messages(prompt: llm.Prompt) -> list[dict[str, str]]:
    """The conversation as chat templates take it."""
    return [
        {"role": message.role, "content": "".join(part.text for part in message.parts if isinstance(part, TextPart))}
        for message in prompt.messages
    ]


class _Model(llm.Model):
    can_stream = True

    def _name(self, options: Any) -> str:
        raise NotImplementedError

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str]:
        """Yield the answer's text; llm.ModelError says what is wrong with a request."""
        asked: Any = prompt.options
        chosen = {
            name: getattr(asked, name)
            for name in ("top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop")
            if getattr(asked, name) is not None
        }
        try:
            model = loaded(self._name(asked), asked.context, asked.threads)
            be_sparse(model, asked.sparsity)
            talk = messages(prompt)
            plain = model.container.chat_template is None and len(talk) == 1
            pieces = model.stream(
                talk[0]["content"] if plain else talk,
                max_new_tokens=asked.max_tokens, temperature=asked.temperature, **chosen,
            )  # fmt: skip
            for piece in pieces:
                yield piece.text
                if piece.stats is not None:
                    stats = piece.stats
                    response.set_usage(input=stats.prompt_tokens, output=stats.decode_tokens)
                    response.response_json = {
                        "finish_reason": piece.finish_reason,
                        "prompt_tokens_reused": stats.prompt_tokens_reused,
                        "decode_tokens_per_second": stats.decode_tokens_per_second,
                        "realised_sparsity": stats.realised_sparsity,
                    }
        except SpqtError as error:
            raise llm.ModelError(str(error)) from error


class AnyModel(_Model):
    """A model by the option `model`."""

    model_id = "spqt"

    class Options(NamedOptions):
        """llm looks for this name."""

    def _name(self, options: Any) -> str:
        return str(options.model)


class KnownModel(_Model):
    """A model that `spqt pull` knows."""

    class Options(Options):
        """llm looks for this name."""

    def __init__(self, name: str) -> None:
        self.model_id = f"spqt/{name}"

    def _name(self, options: Any) -> str:
        return self.model_id.partition("/")[2]
