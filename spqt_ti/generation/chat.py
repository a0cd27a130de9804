"""Chat templates: a conversation as the text that a model was trained on.

The environment is that of transformers' `apply_chat_template`: the same settings, functions, `{% generation %}` blocks
and variables. Templates come with models, so they run in a sandbox that bounds time and memory.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from spqt_ti.errors import CheckpointError, GenerationError
from spqt_ti.generation.template_sandbox import BoundedEnvironment, Budget, weight_of

_LONGEST_TEMPLATE = 1 << 18  # characters; the longest in use have about 30 000
_LONGEST_TIME_FORMAT = 256


class ChatTemplate:
    """A compiled template. `render` may be called from several threads."""

    def __init__(self, source: str, special_tokens: Mapping[str, Any]) -> None:
        """CheckpointError for a template that is no template. `special_tokens`: variables such as `eos_token`."""
        if len(source) > _LONGEST_TEMPLATE:
            raise CheckpointError(f"the model's chat template is damaged ({len(source)} characters)")
        self._names = dict(special_tokens)
        self._lock = threading.Lock()
        self._environment = _environment()
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:  # errors of jinja2, and of Python's compiler: many types, one meaning
            raise CheckpointError(f"the model's chat template is damaged ({_first_line(error)})") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The conversation as text, with the JSON schemas of `tools` and with `documents` to answer from (usually of a
        `title` and a `text`) for a template that has a place for them.

        GenerationError for messages that the template does not take, whatever it does."""
        with self._lock:
            given = [dict(part) for part in (*messages, *(tools or ()), *(documents or ()))]
            self._environment.budget = Budget(weight_of(given, 1 << 30))
            try:
                return self._template.render(
                    messages=messages,
                    tools=list(tools) if tools else None,
                    documents=None if documents is None else list(documents),
                    add_generation_prompt=add_generation_prompt,
                    **self._names,
                )
            except Exception as error:  # a template may raise whatever Python raises
                raise GenerationError(
                    f"the model's chat template does not take these messages: {_first_line(error)}"
                ) from error


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks what a model is trained on, and means nothing when it runs."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block, as in transformers: what is set inside stays inside.
        return jinja2.nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Any) -> Any:
        return caller()


def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.add_filter("tojson", _to_json)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Not jinja's own: that one escapes < and > for HTML.
    if (isinstance(indent, int) and indent > 64) or (isinstance(indent, str) and len(indent) > 64):
        raise ValueError("tojson: indent is too large")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    if len(form) > _LONGEST_TIME_FORMAT:
        raise ValueError("strftime_now: the format is too long")
    return datetime.datetime.now().strftime(form)


def _first_line(error: BaseException) -> str:
    """An error's message in one line: templates and messages may have put anything into it."""
    text = type(error).__name__
    with contextlib.suppress(Exception):
        text = str(error).strip() or text
    return " ".join(text.split())[:300]
