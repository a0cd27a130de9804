# ruff: noqa: E501 (templates are easier to read in one piece)
"""Chat templates: rendered as transformers renders them, and bounded whatever they are."""

from __future__ import annotations

import resource
import sys
import time

import pytest

from spqt_ti.errors import CheckpointError, GenerationError
from spqt_ti.generation.chat import ChatTemplate

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [
    {"role": "system", "content": " Be <brief> & kind. "},
    {"role": "user", "content": "Grüß dich\n"},
    {"role": "assistant", "content": "hello", "tool_calls": [{"name": "f", "arguments": {"x": [1, None, "é"]}}]},
    {"role": "user", "content": "bye"},
]

# What templates of well-known families do, each in small.
SAMPLES = {
    "chatml": "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}[{{ m.content | trim }}]{% endif %}{% endfor %}",
    "tools": "{% if tools is not none %}T{{ tools | tojson }}{% endif %}{% if documents is none %}no documents{% endif %}"
    "{% if tools %}x{% endif %}{{ builtin_tools is defined }}",
    "llama3": "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- endif %}{{- system }}{%- for message in messages %}{{- '<|h|>' + "
    "message['role'] + '<|e|>\n\n' + message['content'] | trim + '<|eot|>' }}{%- endfor %}",
    "calls": "{% for m in messages if m.tool_calls %}{% for c in m.tool_calls %}{{ c.name }}({{ c.arguments | tojson(indent=2)"
    " }}){{ loop.index }}/{{ loop.length }}{{ loop.last }}{% endfor %}{% endfor %}",
    "namespace": "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.found = "
    "true %}{% set ns.n = ns.n + loop.index0 %}{% endif %}{% endfor %}{{ ns.found }} {{ ns.n }}",
    "macro": "{% macro show(m, sep=': ') -%}{{ m.role ~ sep ~ m.content }}{%- endmacro %}{% for m in messages %}"
    "{{ show(m) }}|{{ show(m, sep='=') }}\n{% endfor %}",
    "break": "{% for m in messages %}{% if m.role == 'assistant' %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "filters": "{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | "
    "list | length }} {{ messages[-1].content | upper | replace('B', 'x') }} {{ (messages | last).role | title }}"
    "{{ messages[0].content.split(' ') | length }} {{ [3, 1, 2] | sort | first }} {{ 'a,b'.split(',')[-1] }}",
    "items": "{% for k, v in messages[2].tool_calls[0].arguments.items() %}{{ k }}={{ v }}{% endfor %}"
    "{{ 'x' in messages[2].tool_calls[0].arguments }} {{ messages[2].content in ['hello'] }} {{ 'ell' in 'hello' }}",
    "sets": "{% set x %}{% for m in messages %}{{ m.role[0] }}{% endfor %}{% endset %}{{ x }} {{ x[::-1] }} {{ x[1:3] }}",
    "numbers": "{{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 5 }} {{ 'ab' * 3 }} {{ [1] * 2 + [2] }} {{ '%s-%d' % ('a', 3) }} {{ 1.5 }}"
    "{{ '{}:{:>4}'.format('a', 'b') }}",
    "undefined": "{{ nothing }}{{ messages[0].nothing }}{% if nothing is not defined %}yes{% endif %}{{ pad_token }}",
    "joiner": "{% set c = joiner(', ') %}{% for m in messages %}{{ c() }}{{ m.role }}{% endfor %}{{ dict(a=1) }}"
    "{% for m in messages %}{{ loop.cycle('a', 'b') }}{{ loop.previtem.role if loop.previtem }}{% endfor %}",
    "documents": "{% if documents %}{% for d in documents %}[{{ d['title'] }}: {{ d.text | trim }}]{% endfor %}{% endif %}"
    "{% if documents is not none %}{{ documents | length }}{% endif %}{{ documents | tojson }}",
    "ranges": "{% for i in range(3) %}{{ i }}{% else %}none{% endfor %}{% for i in [] %}{% else %}none{% endfor %}",
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("prompt", [True, False])
def test_as_transformers(name, prompt):
    utils = pytest.importorskip("transformers.utils.chat_template_utils", reason="the reference for chat templates")
    (theirs,), _ = utils.render_jinja_template(
        [MESSAGES], chat_template=SAMPLES[name], add_generation_prompt=prompt, **NAMES
    )
    assert ChatTemplate(SAMPLES[name], NAMES).render(MESSAGES, prompt) == theirs


@pytest.mark.parametrize(
    "documents", [None, [], [{"title": "<A>", "text": " é\n"}, {"title": "B", "text": "", "n": 1}]]
)
def test_documents_as_transformers(documents):
    utils = pytest.importorskip("transformers.utils.chat_template_utils", reason="the reference for chat templates")
    (theirs,), _ = utils.render_jinja_template(
        [MESSAGES], documents=documents, chat_template=SAMPLES["documents"], add_generation_prompt=True, **NAMES
    )
    assert ChatTemplate(SAMPLES["documents"], NAMES).render(MESSAGES, True, documents=documents) == theirs


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1 / 0 }}", "{{ 7 // (messages | length - 4) }}", "{{ '{0} {1}'.format(1) }}", "{{ messages[99].content }}",
        "{{ raise_exception('roles must alternate') }}", "{{ messages.nothing.more }}", "{{ 'a' + 1 }}", "{{ 5 | join }}",
        "{% include 'other' %}", "{{ messages | map('nothing') | list }}", "{{ ''.__class__.__mro__ }}", "{{ lipsum(99) }}",
        "{% macro f(v) %}{{ f(v) }}{% endmacro %}{{ f(1) }}", "{{ strftime_now('%Y' * 9999) }}",
    ],
)  # fmt: skip
def test_whatever_a_template_raises_is_one_error(source):
    with pytest.raises(GenerationError, match="does not take these messages") as caught:
        ChatTemplate(source, NAMES).render(MESSAGES, True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
        "{{ 'a' * 10**9 }}", "{{ 'a' | center(10**9) }}", "{{ 'a'.ljust(10**9) }}", "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format(1) }}", "{{ '{:>{}}'.format(1, 10**9) }}", "{{ '%*d' | format(10**9, 1) }}",
        "{{ 10 ** (10 ** 10) }}", "{{ 2 ** 4000 * 2 ** 4000 }}", "{{ range(99999) | list * 99999 }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s | replace('a', 'aaaa') %}{% endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=['a']) %}{% for i in range(99) %}{% set ns.l = {1: ns.l, 2: ns.l} %}{% endfor %}",
        "{% macro f(v) %}{{ v }}{{ v }}{% endmacro %}" + "{{ " + "f(" * 40 + "'a'" + ")" * 40 + " }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ ('ab' * 1000000).replace('', 'x' * 1000) }}", "{{ ('\t' * 9000).expandtabs(9000) }}",
        "{{ (['a'] * 9999) | join('x' * 9999) }}", "{{ ('a\n' * 99999) | indent(9000) }}", "{{ [1] | batch(10**9, 'x') | list }}",
    ],
)  # fmt: skip
def test_time_and_memory_are_bounded(source):
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((GenerationError, CheckpointError)):
        ChatTemplate(source, NAMES).render(MESSAGES, True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < (100e6 if sys.platform == "darwin" else 100e3)
    assert time.process_time() - start < 20  # of what would take hours


def test_long_conversations_are_within_the_bounds():
    messages = [{"role": role, "content": "word " * 200} for role in ("user", "assistant")] * 1500
    text = ChatTemplate(SAMPLES["chatml"], NAMES).render(messages, True)
    assert len(text) > 3_000_000
    long = [{"role": "user", "content": "x" * 12_000_000}]
    assert len(ChatTemplate(SAMPLES["chatml"], NAMES).render(long, True)) > 12_000_000


@pytest.mark.parametrize("source", ["{% for %}", "{{ x", "{% generation %}", "x" * 300_000, "{{ " + "(" * 9000 + "1"])
def test_no_template(source):
    with pytest.raises(CheckpointError, match="chat template is damaged"):
        ChatTemplate(source, NAMES)
