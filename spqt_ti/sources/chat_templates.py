"""Several chat templates as one: a model may have one for conversations with tools beside its default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULT, TOOL_USE = "default", "tool_use"


def joined(templates: Mapping[str, Any]) -> str | None:
    """One template that does what transformers does with these by name: `tool_use` where there are tools, else
    `default`. Others can only be asked for by name, and are left out. None without a default.

    The signs in `{%+` and `+%}` keep every blank that the templates would write on their own.
    """
    default, tool_use = templates.get(DEFAULT), templates.get(TOOL_USE)
    if not isinstance(default, str):
        return None
    if not isinstance(tool_use, str):
        return default
    parts = [_without_last_line_end(text) for text in (tool_use, default)]
    return f"{{%+ if tools +%}}{parts[0]}{{%+ else +%}}{parts[1]}{{%+ endif +%}}"


def _without_last_line_end(text: str) -> str:
    """As jinja2 reads a template on its own."""
    return text.removesuffix("\n").removesuffix("\r")
