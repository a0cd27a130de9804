"""Calls of tools over HTTP, by the official client: required ones, those that a model chooses, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import openai
import pytest
import served

from spqt_ti.api import Model
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.generation.tool_calls import FORMS

pytestmark = pytest.mark.skipif(find_spec("llguidance") is None, reason="llguidance is not installed")

MESSAGES: Any = [{"role": "user", "content": "a"}]
# With room for a short call in 64 positions.
TEMPLATES = {
    "mistral": "{# [TOOL_CALLS] #}{% if tools %}T{% endif %}{{ messages[-1].content }}",
    "llama": '{# "parameters": dictionary #}{% if tools %}T{% endif %}{{ messages[-1].content }}',
    "no place": "{# [TOOL_CALLS] #}{{ messages[-1].content }}",
    "unknown": "{% if tools %}T{% endif %}{{ messages[-1].content }}",
    "arguments": "{{ messages[1].tool_calls[0].function.arguments.city }}",
}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TOOLS: Any = [tool("f"), tool("g", x={"enum": [1, 2]})]
G: Any = {"type": "function", "function": {"name": "g"}}
# JSON that is a call in Llama's form, for a model that would not choose one.
AS_IF_CHOSEN = {"name": {"const": "f"}, "parameters": {"const": {}}}


@pytest.fixture
def client(address: str, model: Model, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    """Of a server whose model has the test's template."""
    before = model.tokenizer.chat_template
    _use(model, TEMPLATES[request.param])
    yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    _use(model, before)


def _use(model: Model, template: str | None) -> None:
    made = model.container
    vars(model.tokenizer).update(vars(Tokenizer(made.tokenizer_json, made.config, template)))


def template(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("client", [name], indirect=True)


@template("mistral")
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("choice", ["required", G], ids=["required", "named"])
def test_a_call_that_has_to_be(client: openai.OpenAI, choice: Any, streamed: bool) -> None:
    asked: Any = {"model": served.NAME, "messages": MESSAGES, "max_tokens": 58, "tools": TOOLS, "tool_choice": choice}
    asked |= {"temperature": 2, "seed": 3, "n": 2}
    if streamed:
        events = [event.choices[0] for event in client.chat.completions.create(**asked, stream=True)]
        reasons = [event.finish_reason for event in events if event.finish_reason]
        assert not [event for event in events if event.delta.content]
        calls = [(event.index, call) for event in events for call in event.delta.tool_calls or ()]
        assert [(at, call.index) for at, call in calls] == [(0, 0), (1, 0)]
        functions = [call.function for _, call in calls]
        ids = [call.id for _, call in calls]
    else:
        choices = client.chat.completions.create(**asked).choices
        reasons = [one.finish_reason for one in choices]
        assert [one.message.content for one in choices] == [None, None]
        assert [len(one.message.tool_calls or ()) for one in choices] == [1, 1]
        functions = [one.message.tool_calls[0].function for one in choices]
        ids = [one.message.tool_calls[0].id for one in choices]
    assert len({*ids}) == 2
    assert reasons == ["tool_calls" if choice == "required" else "stop"] * 2
    for function in functions:
        arguments = json.loads(function.arguments)
        assert function.name == "g" or (function.name == "f" and choice == "required")
        assert arguments == {} if function.name == "f" else arguments["x"] in (1, 2)


@template("llama")
@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_call_that_a_model_chooses(client: openai.OpenAI, choice: str) -> None:
    schema = {"type": "object", "properties": AS_IF_CHOSEN, "required": ["name", "parameters"]}
    form = {"type": "json_schema", "json_schema": {"name": "call", "schema": {**schema, "additionalProperties": False}}}
    asked: Any = {"model": served.NAME, "messages": MESSAGES, "max_tokens": 58, "tools": TOOLS}
    asked |= {"tool_choice": choice, "response_format": form}
    found = client.chat.completions.create(**asked).choices[0]
    if choice == "none":
        assert json.loads(found.message.content or "") == {"name": "f", "parameters": {}}
        assert (found.message.tool_calls, found.finish_reason) == (None, "stop")
        return
    (call,) = found.message.tool_calls or ()
    assert (call.function.name, call.function.arguments) == ("f", "{}")
    assert (found.message.content, found.finish_reason) == (None, "tool_calls")


@template("llama")
def test_an_answer_that_is_no_call_is_text(client: openai.OpenAI, model: Model) -> None:
    asked: Any = {"model": served.NAME, "max_tokens": 12, "temperature": 0}
    said: Any = [{"role": "user", "content": "he quick brown"}]
    found = client.chat.completions.create(**asked, messages=said, tools=TOOLS).choices[0]
    prompt = model.tokenizer.encode_chat(said, tools=TOOLS)
    text = client.completions.create(**asked, prompt=prompt).choices[0]
    assert text.text
    assert (found.message.content, found.finish_reason) == (text.text, text.finish_reason)


@template("arguments")
def test_arguments_of_earlier_calls_are_objects_in_templates(client: openai.OpenAI, model: Model) -> None:
    call = {"id": "123456789", "type": "function", "function": {"name": "g", "arguments": '{"city": "Rome"}'}}
    said: Any = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}]
    said.append({"role": "tool", "tool_call_id": "123456789", "content": "sunny"})
    found = client.chat.completions.create(model=served.NAME, messages=said, max_tokens=1)
    assert found.usage.prompt_tokens == len(model.tokenizer.encode("Rome", add_special=False))
    for wrong in ("{", 5, ["{}"]):
        call["function"]["arguments"] = wrong
        with pytest.raises(openai.BadRequestError, match="a message's tool_calls are a list of"):
            client.chat.completions.create(model=served.NAME, messages=said, max_tokens=1)


@pytest.mark.parametrize(
    ("client", "changes", "message"),
    [
        ("no place", {}, "this model's chat template has no place for tools"),
        ("unknown", {}, "writes no calls in a form that is known here (" + ", ".join(form.title for form in FORMS)),
        ("mistral", {"tools": []}, "nothing to call"),
        ("mistral", {"tools": None, "tool_choice": G}, "there is no tool 'g' in tools"),
        ("mistral", {"tool_choice": {"type": "function", "function": {"name": "h"}}}, "there is no tool 'h' in tools"),
        ("mistral", {"tool_choice": "any"}, "tool_choice is none, auto, required or"),
        ("mistral", {"tool_choice": {"type": "allowed_tools"}}, "tool_choice is none, auto, required or"),
        ("mistral", {"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "a tool is"),
        ("mistral", {"tools": [tool("f", x={"type": "foo"})]}, "the JSON schema cannot be followed"),
        ("mistral", {"response_format": {"type": "json_object"}}, "has no response_format"),
    ],
    indirect=["client"],
)
def test_what_is_refused(client: openai.OpenAI, changes: dict[str, Any], message: str) -> None:
    asked: Any = {"model": served.NAME, "messages": MESSAGES, "max_tokens": 50, "tools": TOOLS}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{**asked, "tool_choice": "required", **changes})
    assert message in str(refused.value)
