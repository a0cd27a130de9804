"""Named chat templates: with tools and without, what is written is what the chosen template writes on its own."""

from __future__ import annotations

import json

import pytest
from tiny_models import random_weights, tiny_config, write_gguf, write_huggingface

from spqt_ti.generation.chat import ChatTemplate
from spqt_ti.sources import chat_templates, gguf_file
from spqt_ti.sources.open import model_files, open_checkpoint

MESSAGES = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
# Line ends and blanks where blocks trim them, variables and macros, comments at both ends.
TEXTS = [
    "plain", "\n  {% for m in messages %}\n{{ m.content }}\n{% endfor %}\n", "  {%- set x = 1 -%}  {{ x }}  ", "a\n\n",
    "{# c #}\n{% macro f(v) %}<{{ v }}>{% endmacro %}\n{{ f('b') }}{% if tools %}T{% endif %}\n{# c #}", "",
    "\r\nx\r\n",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{#- c #}",
]  # fmt: skip
CONFIG = tiny_config(num_hidden_layers=1)


@pytest.mark.parametrize("default", TEXTS)
@pytest.mark.parametrize("tool_use", TEXTS)
def test_joined(default, tool_use):
    source = chat_templates.joined({"default": default, "tool_use": tool_use, "rag": "never"})
    both = ChatTemplate(source, {})
    for tools, alone in ((None, default), (TOOLS, tool_use)):
        assert both.render(MESSAGES, True, tools) == ChatTemplate(alone, {}).render(MESSAGES, True, tools)


def test_places(tmp_path):
    weights = random_weights(CONFIG)
    named = {"default": "D", "tool_use": "T", "rag": "R"}
    folder = write_huggingface(tmp_path / "hf", CONFIG, weights)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    metadata = {"tokenizer.chat_template": "D", "tokenizer.chat_template.tool_use": "T",
                "tokenizer.chat_templates": ["tool_use"]}  # fmt: skip
    sources = [folder, write_gguf(tmp_path / "m.gguf", CONFIG, weights, metadata=metadata)]
    files = write_huggingface(tmp_path / "files", CONFIG, weights)
    (files / "chat_template.jinja").write_text("D\n")
    (files / "additional_chat_templates").mkdir()
    (files / "additional_chat_templates" / "tool_use.jinja").write_text("T\n")
    assert files / "additional_chat_templates" / "tool_use.jinja" in model_files(files)
    for source in [*sources, files]:
        template = ChatTemplate(open_checkpoint(source).chat_template, {})
        assert [template.render(MESSAGES, True, tools) for tools in (None, TOOLS)] == ["D", "T"]


def test_a_gguf_files_default_is_not_overridden_by_a_named_one():
    key = "tokenizer.chat_template"
    assert gguf_file._chat_template({f"{key}.default": "N", f"{key}.rag": "R"}) == "N"
    assert gguf_file._chat_template({key: "D", f"{key}.default": "N"}) == "D"


def test_as_transformers_chooses(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = write_huggingface(tmp_path / "hf", CONFIG, random_weights(CONFIG))
    (folder / "chat_template.jinja").write_text(TEXTS[1])
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TEXTS[4])
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ours = ChatTemplate(open_checkpoint(folder).chat_template, {})
    for tools in (None, TOOLS):
        expected = theirs.apply_chat_template(MESSAGES, tools=tools, tokenize=False)
        assert ours.render(MESSAGES, False, tools) == expected
