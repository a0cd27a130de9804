"""What single tokens are for, kept in a `tokenizer.json` beside the tokens themselves.

Sources say it in many places (`tokenizer_config.json`, `special_tokens_map.json`, GGUF metadata). Here an entry of
`added_tokens` may have `roles` (`["eos_token"]`, the names that chat templates use) and `ends_text`; the `tokenizers`
library and transformers pass over both. Where any entry has `roles`, all roles are said.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from spqt_ti.bounded_json import parse_object

ADDITIONAL = "additional_special_tokens"  # the role of several tokens


def with_roles(
    tokenizer_json: str, roles: Mapping[str, str], ends: Collection[str] = (), additional: Collection[str] = ()
) -> str:
    """The JSON with each of `roles` (name -> content of the token), `ends` and `additional` noted in its entry.

    Raises JsonError, a ValueError, for damaged JSON.
    """
    fields = parse_object(tokenizer_json)
    for entry in fields.get("added_tokens") or []:
        content = entry["content"]
        of_this = [name for name, token in roles.items() if token == content]
        of_this += [ADDITIONAL] if content in additional else []
        entry.pop("ends_text", None)
        entry |= {"roles": of_this} | ({"ends_text": True} if content in ends else {})
    return json.dumps(fields, ensure_ascii=False)


def names_of(added_tokens: Any) -> dict[str, Any] | None:
    """Name -> content of the tokens that have it (a list for ADDITIONAL), from a JSON's `added_tokens`; None where the
    JSON does not say what its tokens are for.
    """
    if not any("roles" in entry for entry in added_tokens):
        return None
    names: dict[str, Any] = {}
    for entry in added_tokens:
        for name in entry.get("roles", ()):
            if name == ADDITIONAL:
                names.setdefault(name, []).append(entry["content"])
            else:
                names[name] = entry["content"]
    return names


def ends_of(added_tokens: Any) -> set[int]:
    """Ids that end a text."""
    return {entry["id"] for entry in added_tokens if entry.get("ends_text")}
