"""Source positions that Taichi attaches to every node of a kernel, formatted once.

Taichi 1.7.4 wraps the source line of each node for error messages, again for each call of an inlined function: a third
of the time that its front end takes.
"""

import functools
from collections.abc import Callable
from typing import Any

from spqt_ti.backend.taichi_import import PACKAGE, ti


def install() -> None:
    """Remember positions from now on. May be called several times. Nothing with another package than Taichi."""
    if PACKAGE != "taichi":
        return
    context = ti.lang.ast.ast_transformer_utils.ASTTransformerContext
    if not hasattr(context.get_pos_info, "__wrapped__"):
        context.get_pos_info = _remembered(context.get_pos_info)


def _remembered(format_position: Callable[[Any, Any], str]) -> Callable[[Any, Any], str]:
    known: dict[tuple[Any, ...], str] = {}

    @functools.wraps(format_position)
    def position(context: Any, node: Any) -> str:
        # The source is part of the key: a cell of a notebook may be run again with other contents.
        lines = tuple(context.src[node.lineno - 1 : node.end_lineno])
        key = (
            context.file, context.func.func.__name__, context.lineno_offset, context.indent, type(node), lines,
            node.lineno, node.col_offset, node.end_lineno, node.end_col_offset,
        )  # fmt: skip
        if key not in known:
            known[key] = format_position(context, node)
        return known[key]

    return position
