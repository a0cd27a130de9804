"""Chat templates put together from statements that templates are made of, and from those that attacks are made of."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from spqt_ti.generation.chat import ChatTemplate

MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the fox " * 20}]
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


def prepare(folder: Path) -> Callable[[random.Random], None]:
    del folder

    def feed(rng: random.Random) -> None:
        source = "{% set ns = namespace(s='ab') %}{% set l = ['a', 'b'] %}{% set x = 'xy' %}" + _block(rng, 3)
        ChatTemplate(source, NAMES).render(MESSAGES, add_generation_prompt=rng.random() < 0.5)

    return feed


def _block(rng: random.Random, depth: int) -> str:
    return "".join(_statement(rng, depth) for _ in range(rng.choice((1, 2, 3))))


def _statement(rng: random.Random, depth: int) -> str:
    inner = _block(rng, depth - 1) if depth else "."
    value = _value(rng, 2)
    return rng.choice(
        (
            f"{{{{ {value} }}}}",
            f"{{% for m in {rng.choice(('messages', 'range(100000)', 'l', value))} %}}{inner}{{% endfor %}}",
            f"{{% for i in range(99999) %}}{{% set ns.s = ns.s ~ ns.s %}}{inner}{{% endfor %}}",
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
            "{{ {{ }}", "{% endfor %}", "{{ '" + "x" * 200 + "' }}", "{{ " + "(" * rng.choice((5, 300)) + "1",
            "{{ " + "-" * rng.choice((5, 2000)) + "1 }}", "{{ " + "1 + " * rng.choice((5, 3000)) + "1 }}",
        )
    )  # fmt: skip


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
