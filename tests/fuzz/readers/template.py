"""Chat templates put together from statements that templates are made of, and from those that attacks are made of."""

from __future__ import annotations

import random
from pathlib import Path

from fuzz.mutate import raw_bytes
from fuzz.target import Target
from tiny_models import CHAT_TEMPLATE

from spqt_ti.generation.chat import ChatTemplate

MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the fox " * 20}]
_USUAL = """\
{%- if messages[0]['role'] == 'system' %}{%- set m = messages[0]['content'] | trim %}{%- else %}{%- set m = '' %}
{%- endif %}{{ bos_token }}{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}{%- endif %}
{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}
{% generation %}{{ message.content ~ eos_token }}{% endgeneration %}
{%- endfor %}{{ strftime_now('%d') }}{{ messages | tojson }}"""
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
VALUES = (
    "messages", "m", "m.content", "m['role']", "x", "l", "i", "0", "-1", "7", "10**9", "2**70", "'a'", "''", "[]", "{}",
    "none", "ns", "ns.s", "range(9)", "range(10**9)", "messages[0]", "loop.index0", "tools", "dict", "[l, l]",
    "{'a': l}", "cycler", "namespace", "strftime_now", "'%s'", "'{0:>9999999999}'", "'%99999999d'", "lipsum", "unknown",
    "1.5",
)  # fmt: skip
FILTERS = (
    "trim", "length", "tojson", "tojson(indent=4)", "join(', ')", "list", "string", "int", "first", "last", "upper",
    "replace('a', 'aaaaaaaa')", "replace('', 'xxxxxxxx')", "center(10**9)", "center(9)", "indent(10**8)", "indent(2)",
    "map(attribute='content')", "map('upper')", "map('tojson')", "selectattr('role', 'equalto', 'user')", "sort", "sum",
    "reverse", "unique", "batch(3)", "batch(10**9, 'x')", "slice(10**8)", "format(1)", "format(m)", "items", "dictsort",
    "default('y')", "round", "abs", "safe", "escape", "wordwrap(1)", "truncate(3)", "urlencode", "pprint", "xmlattr",
    "groupby('role')", "min", "max", "random", "filesizeformat", "striptags", "urlize", "attr('__class__')", "float",
)  # fmt: skip
TESTS = ("string", "mapping", "defined", "iterable", "eq(1)", "in(l)", "divisibleby(0)", "sameas(x)")
OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and", "or", "is defined and", "not in")
METHODS = (
    "split()", "split('')", "strip()", "join(l)", "join(messages)", "center(10**9)", "ljust(99999)", "zfill(10**9)",
    "format(m)", "format(10**9)", "replace('a', 'b' * 999)", "expandtabs(10**8)", "items()", "upper()", "encode()",
    "splitlines()", "startswith('a')", "get('role')", "__class__", "__init__.__globals__", "append(1)", "copy()",
)  # fmt: skip


def prepare(folder: Path) -> Target:
    del folder
    begin = "{% set ns = namespace(s='ab') %}{% set l = ['a', 'b'] %}{% set x = 'xy' %}"

    def mutate(raw: bytes, rng: random.Random) -> bytes:
        kind = rng.random()
        if kind < 0.4:
            return (begin + _block(rng, rng.choice((0, 0, 1, 2)))).encode()
        if kind < 0.6:
            return raw_bytes(raw, rng, 2000)
        where = [0, *(i + 2 for i in range(min(len(raw), 2000)) if raw[i : i + 2] == b"%}"), len(raw)]
        cut = rng.choice(where)
        return raw[:cut] + _block(rng, rng.choice((0, 0, 1))).encode() + raw[cut:]

    def read(raw: bytes) -> None:
        ChatTemplate(raw.decode(errors="replace"), NAMES).render(MESSAGES, add_generation_prompt=len(raw) % 2 == 0)

    return Target((begin.encode(), CHAT_TEMPLATE.encode(), _USUAL.encode()), mutate, read)


def _block(rng: random.Random, depth: int) -> str:
    return "".join(_statement(rng, depth) for _ in range(rng.choice((1, 2, 3))))


def _statement(rng: random.Random, depth: int) -> str:
    inner = _block(rng, depth - 1) if depth else "."
    value = _value(rng, 2)
    # Seldom many turns: a template that uses up its steps takes as long as a hundred others.
    many = "range(100000)" if rng.random() < 0.01 else "range(9)"
    return rng.choice(
        (
            f"{{{{ {value} }}}}",
            f"{{% for m in {rng.choice(('messages', many, 'l', value))} %}}{inner}{{% endfor %}}",
            f"{{% for i in {many} %}}{{% set ns.s = ns.s ~ ns.s %}}{inner}{{% endfor %}}",
            f"{{% if {value} %}}{inner}{{% else %}}b{{% endif %}}",
            f"{{% set l = [l, l] %}}{{% set x = {value} %}}{inner}",
            f"{{% set ns.s = {value} %}}",
            f"{{% set x %}}{inner}{{% endset %}}{{{{ x * 3 }}}}",
            f"{{% macro f(v) %}}{inner}{{{{ f(v) }}}}{{% endmacro %}}{{{{ f({value}) }}}}",
            f"{{% macro g(v) %}}{{{{ v }}}}{{{{ v }}}}{{% endmacro %}}{{{{ g(g(g({value}))) }}}}",
            f"{{% for m in messages recursive %}}{{{{ loop(messages) }}}}{inner}{{% endfor %}}",
            f"{{% generation %}}{inner}{{% endgeneration %}}",
            f"{{% filter upper %}}{inner}{{% endfilter %}}",
            "{{ raise_exception('no') }}", "{% include 'x' %}", "{% break %}", "{{ strftime_now('%Y' * 99) }}",
            "{{ {{ }}", "{% endfor %}", "{{ '" + "x" * 200 + "' }}", "{{ " + "(" * _times(rng, 300) + "1",
            "{{ " + "-" * _times(rng, 2000) + "1 }}", "{{ " + "1 + " * _times(rng, 3000) + "1 }}",
        )
    )  # fmt: skip


def _times(rng: random.Random, most: int) -> int:
    """Seldom many: the parser takes as long for them as for a hundred templates."""
    return most if rng.random() < 0.01 else rng.choice((2, 5))


def _value(rng: random.Random, depth: int) -> str:
    if not depth or rng.random() < 0.3:
        return rng.choice(VALUES)
    what, inner = rng.randrange(6), _value(rng, depth - 1)
    if what == 0:
        return f"({inner} {rng.choice(OPERATORS)} {_value(rng, depth - 1)})"
    if what == 1:
        return f"({inner}).{rng.choice(METHODS)}"
    if what == 2:
        return f"({inner})[{rng.choice(('0', '-1', '1:', '::-1', '::0', '99:', repr('role')))}]"
    if what == 3:
        return f"({inner} is {rng.choice(TESTS)})"
    return f"({inner} | {rng.choice(FILTERS)})"
