"""Calls of tools in an answer: how families of models write them, read while the text comes, and grammars for them.

Models write calls as they were trained to, between markers that their chat templates show. A template says nothing
else about it, so the markers are what a form is known by.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spqt_ti import bounded_json
from spqt_ti.errors import GenerationError
from spqt_ti.generation.answer import overlap
from spqt_ti.generation.constraint import ONE_LINE, Constraint
from spqt_ti.generation.tokenizer import Tokenizer

MOST_CALLS = 8  # where several are required: small models would go on
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # OpenAI's
_ID_CHARACTERS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Form:
    """How calls are written: JSON between `begin` and `end`, an object or (`listed`) a list of objects with `name` and
    `arguments`. An answer that is a call without any markers has neither `begin` nor `end`.

    `title`: what messages call it. `known_by`: texts that a template has, and `not_by`, that it has not.
    """

    title: str
    begin: str
    end: str
    known_by: tuple[str, ...]
    not_by: tuple[str, ...] = ()
    listed: bool = False
    arguments: str = "arguments"
    space: str = ""  # before the JSON and after it


FORMS = (
    Form("Hermes, Qwen", "<tool_call>", "</tool_call>", ("<tool_call>", "</tool_call>"), ("<function=",), space="\n"),
    Form("Mistral", "[TOOL_CALLS]", "", ("[TOOL_CALLS]",), ("[ARGS]",), listed=True),
    Form("Granite", "<|tool_call|>", "", ("<|tool_call|>",), listed=True),
    Form("Llama 3", "", "", ('"parameters": dictionary',), arguments="parameters"),
)


@dataclass(frozen=True)
class ToolCall:
    """A call: the function's name, and its arguments as JSON text. The id has nine letters or digits, as Mistral's
    templates ask.
    """

    name: str
    arguments: str
    id: str = field(default_factory=lambda: "".join(secrets.choice(_ID_CHARACTERS) for _ in range(9)))


def form_of(template: str | None) -> Form | None:
    """How a model with this chat template writes calls; None where that is not known."""
    for form in FORMS:
        if template and all(text in template for text in form.known_by):
            return None if any(text in template for text in form.not_by) else form
    return None


def names_of(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the functions in OpenAI's `tools`. GenerationError for others than functions with proper names."""
    names = []
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise GenerationError('a tool is {"type": "function", "function": {"name": ..., "parameters": {...}}}')
        names.append(name)
    return names


def must_call(
    form: Form, tools: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *, several: bool = False
) -> Constraint:
    """Answers are a call of one of these tools, with arguments of its schema; `several`: one call or more, up to
    MOST_CALLS where the form has a place for them.

    GenerationError for schemas that llguidance does not take, and where it is not installed.
    """
    rules = []
    for number, (name, tool) in enumerate(zip(names_of(tools), tools, strict=True)):
        schema = tool["function"].get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(schema, Mapping):
            raise GenerationError(f"the parameters of {name} are no JSON schema")
        Constraint.json_schema(schema)  # says what is wrong with it alone
        start = f'{{"name": "{name}", "{form.arguments}": '
        text = json.dumps({"x-guidance": ONE_LINE, **schema})
        rules.append(f'call_{number}: {json.dumps(start)} %json {text} "}}"')
    one = " | ".join(f"call_{number}" for number in range(len(rules)))
    begin, end = _marker(form.begin, tokenizer), _marker(form.end, tokenizer)
    space = json.dumps(form.space) if form.space else ""
    more = f"{{0,{MOST_CALLS - 1}}}"
    if form.listed:
        body = f'start: {begin} " "? "[" call' + (f' (", " call){more}' if several else "") + f' "]" {end}'
    else:
        whole = f"{begin} {space} call {space} {end}"
        body = f"start: {whole}" + (f' ("\\n" {whole}){more}' if several and begin else "")
    return Constraint("lark", "\n".join([body, f"call: {one}", *rules]))


def _marker(text: str, tokenizer: Tokenizer) -> str:
    """A marker in a grammar: a control token by its number, anything else as text."""
    token = tokenizer.special_id(text) if text else None
    return f"<[{token}]>" if token is not None else json.dumps(text) if text else ""


class CallReader:
    """Parts the text of an answer, which comes in pieces, into text and calls of the tools `names`.

    What may yet become a call is held back. What turns out to be none is text after all, so that nothing is lost.
    `most`: calls after so many are dropped.
    """

    def __init__(self, form: Form, names: Collection[str], most: int | None = None) -> None:
        self._form, self._names, self._most = form, frozenset(names), most
        self._held, self._inside, self._made = "", False, 0
        self._tried = 0  # characters of what is held in which no end makes a call
        self._bare = not form.begin  # a call may still begin where there are no markers

    def push(self, text: str, *, last: bool = False) -> tuple[str, list[ToolCall]]:
        """(text, calls) that became certain with this piece. `last`: no other follows."""
        self._held += text
        if not self._form.begin:
            return self._push_bare(last)
        shown, calls = "", []
        while self._held:
            if not self._inside:
                before, found, rest = self._held.partition(self._form.begin)
                if not found:
                    kept = 0 if last else overlap(self._held, self._form.begin)
                    shown += self._held[: len(self._held) - kept]
                    self._held = self._held[len(self._held) - kept :]
                    break
                shown, self._held, self._inside = shown + before, rest, True
            made = self._first_call(last)
            if made is None:
                if last:
                    shown, self._held = shown + self._form.begin + self._held, ""
                break
            calls += made
            self._inside = False
        if calls or self._made:  # white space between calls is no answer
            shown = shown if shown.strip() else ""
        return shown, self._counted(calls)

    def _first_call(self, last: bool) -> list[ToolCall] | None:
        """Calls at the start of what is held, which is taken away; None where they are not whole, or no calls."""
        end = self._form.end
        at = self._held.find(end, self._tried) if end else -1
        while at >= 0:  # the first end may stand in a string
            made = self._parsed(self._held[:at])
            if made is not None:
                self._held, self._tried = self._held[at + len(end) :], 0
                return made
            self._tried = at + 1
            at = self._held.find(end, self._tried)
        made = self._parsed(self._held) if last else None
        if made is not None:
            self._held = ""
        return made

    def _push_bare(self, last: bool) -> tuple[str, list[ToolCall]]:
        start = self._held.lstrip()[:1]
        self._bare = self._bare and start in ("", "{")
        if self._bare and not last:
            return "", []
        made = self._parsed(self._held) if self._bare else None
        shown, self._held = ("" if made else self._held), ""
        return shown, self._counted(made or [])

    def _parsed(self, text: str) -> list[ToolCall] | None:
        try:
            value = bounded_json.parse(text.strip())
        except bounded_json.JsonError:
            return None
        calls = []
        for one in value if isinstance(value, list) else [value]:
            given = one.get(self._form.arguments) if isinstance(one, dict) else None
            if not isinstance(given, dict) or one.get("name") not in self._names:
                return None
            calls.append(ToolCall(one["name"], json.dumps(given)))
        return calls or None

    def _counted(self, calls: list[ToolCall]) -> list[ToolCall]:
        kept = calls if self._most is None else calls[: max(0, self._most - self._made)]
        self._made += len(kept)
        return kept
