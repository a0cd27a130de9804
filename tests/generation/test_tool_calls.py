"""Calls of tools: found in answers however these are cut, nothing lost, and grammars that models cannot leave."""

from __future__ import annotations

import itertools
import json
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import tiny_containers
from hypothesis import given, settings
from hypothesis import strategies as st

from spqt_ti import bounded_json
from spqt_ti.api import Model
from spqt_ti.errors import GenerationError
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.generation.tool_calls import FORMS, CallReader, Form, form_of, must_call, names_of

HERMES, MISTRAL, GRANITE, LLAMA = FORMS
NAMES = ("now", "weather")
parse = bounded_json.parse
CALL = '{"name": "weather", "arguments": {"city": "K\\u00f6ln </tool_call>", "days": [1, 2]}}'
ARGUMENTS = {"city": "Köln </tool_call>", "days": [1, 2]}
NOW = '{"name": "now", "arguments": {}}'
needs_llguidance = pytest.mark.skipif(find_spec("llguidance") is None, reason="llguidance is not installed")

# form, answer, text of it, calls in it
ANSWERS = [
    (HERMES, "No call, 1 < 2 and <tool> are text.", "No call, 1 < 2 and <tool> are text.", []),
    (HERMES, f"<tool_call>\n{CALL}\n</tool_call>", "", [("weather", ARGUMENTS)]),
    (HERMES, f"Let me see.<tool_call>{NOW}</tool_call>", "Let me see.", [("now", {})]),
    (
        HERMES, f"<tool_call>\n{NOW}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>", "",
        [("now", {}), ("weather", ARGUMENTS)],
    ),
    (HERMES, f"<tool_call>\n{NOW}", "", [("now", {})]),  # the end was cut off, or the model ends without it
    (HERMES, "<tool_call>\n{now}\n</tool_call> so", "<tool_call>\n{now}\n</tool_call> so", []),
    (HERMES, '<tool_call>{"name": "rm", "arguments": {}}</tool_call>', None, []),
    (HERMES, '<tool_call>{"name": "now", "arguments": "{}"}</tool_call>', None, []),
    (HERMES, '<tool_call>{"name": "now", "argum', None, []),
    (HERMES, "<tool_call", None, []),
    (MISTRAL, f"[TOOL_CALLS] [{NOW}, {CALL}]", "", [("now", {}), ("weather", ARGUMENTS)]),
    (MISTRAL, "[TOOL_CALLS] []", None, []),
    (GRANITE, f"<|tool_call|>[{CALL}]", "", [("weather", ARGUMENTS)]),
    (LLAMA, '{"name": "now", "parameters": {"a": 1}}', "", [("now", {"a": 1})]),
    (LLAMA, '{"name": "now", "arguments": {"a": 1}}', None, []),
    (LLAMA, ' {"name": "now"} is how', None, []),
    (LLAMA, 'It is {"name": "now", "parameters": {}}', None, []),
]  # fmt: skip


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters | {"additionalProperties": False}}}


def read(reader: CallReader, pieces: list[str]) -> tuple[str, list[tuple[str, Any]]]:
    parts = [reader.push(piece) for piece in pieces] + [reader.push("", last=True)]
    calls = [(call.name, json.loads(call.arguments)) for _, some in parts for call in some]
    return "".join(text for text, _ in parts), calls


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(ANSWERS), st.lists(st.integers(0, 100), max_size=12))
def test_calls_are_found_however_an_answer_is_cut(answer: Any, cuts: list[int]) -> None:
    form, text, shown, calls = answer
    places = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    pieces = [text[begin:end] for begin, end in itertools.pairwise(places)]
    found, made = read(CallReader(form, NAMES), pieces)
    assert (found.strip(), made) == ((text if shown is None else shown).strip(), calls)
    assert read(CallReader(form, NAMES), list(text)) == read(CallReader(form, NAMES), [text])


def test_text_is_not_held_back() -> None:
    reader = CallReader(HERMES, NAMES)
    assert reader.push("One < two <tool") == ("One < two ", [])
    assert reader.push(" box") == ("<tool box", [])


def test_each_end_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may be led to repeat the end for thousands of tokens."""
    tried: list[str] = []
    monkeypatch.setattr(bounded_json, "parse", lambda text: tried.append(text) or parse(text))
    text = "<tool_call>" + "</tool_call>" * 50
    assert read(CallReader(HERMES, NAMES), [text[:11], *("</tool_call>" for _ in range(50))]) == (text, [])
    assert len(tried) == 51


def test_calls_beyond_the_most_are_dropped() -> None:
    text = f"<tool_call>{NOW}</tool_call><tool_call>{CALL}</tool_call>"
    assert read(CallReader(HERMES, NAMES, most=1), [text]) == ("", [("now", {})])
    assert read(CallReader(HERMES, NAMES, most=1), list(text)) == ("", [("now", {})])


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (None, None),
        ("{{ messages[0].content }}", None),
        ("<tool_call></tool_call> and tools", HERMES),
        ("<tool_call>\n<function=f></tool_call>", None),  # Qwen3-Coder's XML
        ("[TOOL_CALLS] [{", MISTRAL),
        ("[TOOL_CALLS]f[ARGS]{", None),
        ("respond only with <|tool_call|> followed by", GRANITE),
        ('{"name": function name, "parameters": dictionary of argument name and its value}', LLAMA),
    ],
)
def test_forms_are_known_by_their_templates(template: str | None, form: Form | None) -> None:
    assert form_of(template) == form


@needs_llguidance
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.title)
@pytest.mark.parametrize("several", [False, True])
def test_a_grammar_cannot_be_left(form: Form, several: bool) -> None:
    """Tokens are drawn at random of those that are allowed; what comes is read as calls."""
    container = tiny_containers.container("gqa")
    model = Model(container, tiny_containers.llama("gqa"))
    tools = [tool("now"), tool("weather", unit={"$ref": "#/$defs/unit"}, sure={"type": "boolean"})]
    tools[1]["function"]["parameters"]["$defs"] = {"unit": {"enum": ["c", 22]}}
    constraint = must_call(form, tools, model.tokenizer, several=several)
    seen, counts = set(), set()
    for seed in range(6):
        rng, matcher, tokens = np.random.default_rng(seed), model.matcher(constraint), []
        while not matcher.over and len(tokens) < 900:
            allowed = np.flatnonzero(matcher.allowed())
            token = int(rng.choice(allowed))
            if token in model.tokenizer.eos_ids:
                break
            tokens.append(token)
            matcher.take(token)
        text, calls = read(CallReader(form, NAMES), [model.tokenizer.decode(tokens, skip_special=False)])
        assert text == ""
        assert calls
        counts.add(len(calls))
        for name, arguments in calls:
            assert arguments == {} if name == "now" else arguments["unit"] in ("c", 22)
            seen.add(name)
    assert seen == set(NAMES)
    assert counts == {1} if not several or form is LLAMA else max(counts) > 1


@needs_llguidance
def test_a_marker_that_is_a_control_token_is_this_token() -> None:
    container = tiny_containers.container("gqa")
    tokenizer = Tokenizer(container.tokenizer_json, container.config)
    name = next(text for text in ("<|im_start|>", "<|im_end|>", "<s>") if tokenizer.special_id(text) is not None)
    form = Form("test", name, "", (name,))
    model = Model(container, tiny_containers.llama("gqa"))
    allowed = model.matcher(must_call(form, [tool("now")], tokenizer)).allowed()
    assert np.flatnonzero(allowed).tolist() == [tokenizer.special_id(name)]
    shown = model.tokenizer.stream(show=[tokenizer.special_id(name)])
    assert shown.push(tokenizer.special_id(name)) == name
    assert model.tokenizer.stream().push(tokenizer.special_id(name)) == ""


@pytest.mark.parametrize("bad", [[{}], [{"function": {}}], [{"function": {"name": "a b"}}], [3]])
def test_tools_that_are_none(bad: Any) -> None:
    with pytest.raises(GenerationError, match="a tool is"):
        names_of(bad)
