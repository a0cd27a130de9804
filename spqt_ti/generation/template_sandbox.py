"""A jinja2 sandbox in which a hostile template can neither run nor write for long, nor fill the memory.

jinja2's own sandbox keeps templates away from Python's internals. This one counts besides: every call, filter, turn of
a loop and character of output is charged to a budget, and what could grow is measured before it is made. A template
that asks for more than any conversation needs is a `TemplateLimitError`. Counting, unlike a clock, ends at the same
place on every machine.
"""
# ruff: noqa: N802 (jinja2's compiler calls visit_For and the like by the names of nodes)

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
import jinja2.sandbox
from jinja2.compiler import CodeGenerator, Frame

_MOST_STEPS = 200_000  # a conversation of 1000 messages takes about 20 000
_MOST_TEXT = 4_000_000  # characters written, besides 8 times those of the conversation
_MOST_VALUE = 4_000_000  # characters of a string, and characters and entries of a list with all that is in it
_LARGEST_ARGUMENT = 10_000  # whole numbers given to filters and methods: widths, counts
_MOST_BITS = 4096
_LONG_NUMBER = re.compile(r"\d{5}|\*")
_CHARACTERS_PER_STEP = 256
_ENTRY = 32  # characters that an entry of a list counts as: looking at it takes as long


class TemplateLimitError(jinja2.TemplateRuntimeError):
    """The template asks for more time or memory than any conversation needs."""


class Budget:
    """What is left for one rendering."""

    def __init__(self, conversation: int = 0) -> None:
        self.steps = _MOST_STEPS + 16 * conversation
        self.text = _MOST_TEXT + 8 * conversation
        self.value = _MOST_VALUE + 2 * conversation

    def step(self, count: int = 1) -> None:
        """Charge work."""
        self.steps -= count
        if self.steps < 0:
            raise TemplateLimitError("it runs for too long")

    def write(self, characters: int) -> None:
        """Charge output."""
        self.step()
        self.text -= characters
        if self.text < 0:
            raise TemplateLimitError("its output is too long")

    def allow(self, size: int) -> None:
        """Refuse a value that would be larger than allowed; charge the making of one that is not."""
        if size > self.value:
            raise TemplateLimitError("it makes a value that is too large")
        self.step(1 + size // _CHARACTERS_PER_STEP)


class BoundedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """An environment for one rendering at a time: set `budget` before each."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        self.budget = Budget()
        super().__init__(optimized=False, finalize=_written, **options)
        self.code_generator_class = _CountingGenerator
        self.filters = {name: self._bounded_filter(name, made) for name, made in self.filters.items()}
        self.tests = {name: self._bounded_test(made) for name, made in dict[str, Any](self.tests).items()}
        self.filters[_COUNTED] = self._counted
        del self.globals["lipsum"]  # text out of nothing

    def add_filter(self, name: str, made: Callable[..., Any]) -> None:
        """Register a filter that is bounded as all others are."""
        self.filters[name] = self._bounded_filter(name, made)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Charged and measured; widths and counts are bounded."""
        __self.budget.step()
        __self._check_arguments((*args, *kwargs.values()))
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            __self._check_text_call(owner, __obj.__name__, args)
        return __self.measured(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse what would be too large, before it is computed."""
        if operator == "+":
            self.budget.allow(_size(left) + _size(right) if not isinstance(left, int | float) else 1)
        elif operator == "*":
            self._check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.budget.allow(1 if left.bit_length() * max(right, 0) <= _MOST_BITS else self.budget.value + 1)
        elif operator == "%" and isinstance(left, str):
            self._check_format(left)
        return self.measured(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Any:
        """As jinja2's; formats with wide fields are refused."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            self._check_format(value.__self__)
        return wrapped

    def measured(self, value: Any) -> Any:
        """The value, if it is small enough with all that is in it: lists that hold one another can be vast."""
        if isinstance(value, str):
            self.budget.allow(len(value))
        elif isinstance(value, list | tuple | dict | set):
            self.budget.allow(_weight(value, self.budget.value + 1))
        elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise TemplateLimitError("it computes a number that is too large")
        return value

    def joined(self, parts: tuple[Any, ...]) -> str:
        """What `~` makes of its operands."""
        texts = [str(self.measured(part)) for part in parts]
        self.budget.allow(sum(map(len, texts)))
        return "".join(texts)

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """What `value[start:stop:step]` gives."""
        self.budget.step(1 + _size(value) // 16)
        return value[slice(start, stop, step)]

    def operand(self, value: Any) -> Any:
        """A value that is compared, or searched."""
        self.budget.step(1 + _size(value) // 16)
        return value

    def constant(self, text: str) -> str:
        """A piece of the template itself."""
        self.budget.write(len(text))
        return text

    def handle_exception(self, source: str | None = None) -> NoReturn:
        """Raise what is being handled as it is: jinja2 would compile a piece of Python for every frame between, and a
        macro that calls itself has a thousand.
        """
        error = sys.exc_info()[1]
        assert error is not None
        if isinstance(error, jinja2.TemplateSyntaxError):
            error.translated, error.source = True, source  # the message alone, without lines of the template
        raise error

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        """As jinja2 parses it, with every loop's values counted."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(jinja2.nodes.For):
            loop.iter = jinja2.nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
        return tree

    def _counted(self, values: Any) -> Iterator[Any]:
        for value in values:
            self.budget.step()
            yield value

    def _bounded_filter(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        skipped = 1 if hasattr(made, "jinja_pass_arg") else 0  # the context, or the like

        @_marked_like(made)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            value, others = args[skipped], (*args[skipped + 1 :], *kwargs.values())
            self.budget.step(1 + _size(value) // 16)
            self.measured(value)
            self._check_arguments(others)
            if name == "format" and isinstance(value, str):
                self._check_format(value)
            elif name == "indent":
                self.budget.allow(_size(value) + str(value).count("\n") * max([0, *map(_number_or_size, others)]))
            elif name in ("replace", "join"):
                self._check_text_call(
                    str(value) if name == "replace" else "", name, (value, *others)[name == "replace" :]
                )
            result = made(*args, **kwargs)
            return self._counted(result) if isinstance(result, Iterator) else self.measured(result)

        return bounded

    def _bounded_test(self, made: Callable[..., Any]) -> Callable[..., Any]:
        @_marked_like(made)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            for value in args:
                self.budget.step(1 + _size(value) // 16)
            return made(*args, **kwargs)

        return bounded

    def _check_arguments(self, values: Iterable[Any]) -> None:
        for value in values:
            self.budget.step(_size(value) // _CHARACTERS_PER_STEP)
            # range() has its own limit, with a better message.
            if isinstance(value, int) and not -_LARGEST_ARGUMENT <= value <= 100 * _LARGEST_ARGUMENT:
                raise TemplateLimitError("it calls something with a number that is too large")

    def _check_text_call(self, owner: str, name: str, args: tuple[Any, ...]) -> None:
        """Methods whose result may be far longer than what they are given."""
        if name == "replace" and len(args) >= 2:
            old, new = str(args[0]), str(args[1])
            self.budget.allow(len(owner) + (owner.count(old) * len(new) if len(new) > len(old) else 0))
        elif name == "join" and args:
            separator = owner or (str(args[1]) if len(args) > 1 else "")
            self.budget.allow(_size(args[0]) * len(separator) + _weight(args[0], self.budget.value + 1))
        elif name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
            width = max([0, *(value for value in args if isinstance(value, int))])
            self.budget.allow(len(owner) + width * (owner.count("\t") + 1 if name == "expandtabs" else 1))
        elif name in ("format", "format_map"):
            self._check_format(owner)
        else:
            self.budget.step(len(owner) // _CHARACTERS_PER_STEP)

    def _check_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            self.budget.allow(1 if left.bit_length() + right.bit_length() <= _MOST_BITS else self.budget.value + 1)
        elif isinstance(left, int) or isinstance(right, int):
            count, repeated = (left, right) if isinstance(left, int) else (right, left)
            self.budget.allow(max(count, 0) * _weight(repeated, self.budget.value + 1))

    def _check_format(self, text: str) -> None:
        self.budget.allow(len(text))
        fields = re.findall(r"%[^a-zA-Z%]*|\{[^}]*\}?", text)
        if any(_LONG_NUMBER.search(field) or field.count("{") > 1 for field in fields):
            raise TemplateLimitError("it formats with a width that is too large, or computed")


@jinja2.pass_context
def _written(context: Any, value: Any) -> Any:
    """Charge what an expression writes."""
    environment = context.environment
    environment.budget.write(_size(environment.measured(value)))
    return value


def _marked_like(made: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Hand on jinja2's marks (such as pass_context); functools.wraps hands on more, for a hundred filters each time."""

    def mark(bounded: Callable[..., Any]) -> Callable[..., Any]:
        bounded.__dict__.update(getattr(made, "__dict__", {}))
        return bounded

    return mark


_COUNTED = "counted by the sandbox"  # no name that a template could spell


class _CountingGenerator(CodeGenerator):
    """Compiles a template so that concatenations, slices, comparisons, literals and output go by the environment."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: jinja2.nodes.Getitem, frame: Frame) -> None:
        if not isinstance(node.arg, jinja2.nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.sliced(")
        self.visit(node.node, frame)
        for part in (node.arg.start, node.arg.stop, node.arg.step):
            self.write(", ")
            if part is None:
                self.write("None")
            else:
                self.visit(part, frame)
        self.write(")")

    def visit_Operand(self, node: jinja2.nodes.Operand, frame: Frame) -> None:
        self.write(f" {_OPERATORS[node.op]} environment.operand(")
        self.visit(node.expr, frame)
        self.write(")")

    def visit_List(self, node: jinja2.nodes.List, frame: Frame) -> None:
        self._measured(super().visit_List, node, frame)

    def visit_Dict(self, node: jinja2.nodes.Dict, frame: Frame) -> None:
        self._measured(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: jinja2.nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._measured(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.constant({super()._output_const_repr(group)})"

    def _measured(self, visit: Callable[[Any, Frame], None], node: Any, frame: Frame) -> None:
        self.write("environment.measured(")
        visit(node, frame)
        self.write(")")


_OPERATORS = {
    "eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<=", "in": "in", "notin": "not in",
}  # fmt: skip


def _size(value: Any) -> int:
    """Characters of a string, entries of a container, 1 for everything else."""
    return len(value) if isinstance(value, str | list | tuple | dict | set | bytes) else 1


def _number_or_size(value: Any) -> int:
    return value if isinstance(value, int) else _size(value)


def _weight(value: Any, most: int) -> int:
    """Characters of a value with all that is in it, each as often as it is there, and _ENTRY for each entry; stops
    counting at `most`.
    """
    waiting, weight = [value], 0
    while waiting and weight < most:
        part = waiting.pop()
        weight += _size(part) * (_ENTRY if isinstance(part, list | tuple | set | Mapping) else 1)
        if isinstance(part, Mapping):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set):
            waiting += part
    return weight


weight_of = _weight
