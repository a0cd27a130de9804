"""The tokenizer of a Hugging Face directory as one `tokenizer.json`, put together as transformers does.

`tokenizer.json` has most of it. Added and special tokens may be in `tokenizer_config.json`, `special_tokens_map.json`
and `added_tokens.json` instead; chat templates in `chat_template.jinja`,
`additional_chat_templates/` or `tokenizer_config.json`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from spqt_ti.bounded_json import JsonError, parse_object, read_bytes
from spqt_ti.errors import CheckpointError
from spqt_ti.sources import chat_templates
from spqt_ti.sources.token_roles import with_roles
from spqt_ti.sources.tokenizers_library import check_bounds, library_errors

_log = logging.getLogger(__name__)

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_TOKENIZER, _CONFIG, _SPECIAL_MAP, _ADDED, _TEMPLATE = FILES
_NAMED_TEMPLATES = "additional_chat_templates"  # folder
_STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA = ("extra_special_tokens", "additional_special_tokens")  # the second is the older name
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


@dataclass(frozen=True)
class _Token:
    """An added token; `flags` as far as a file says them."""

    content: str
    flags: tuple[tuple[str, bool], ...] = ()

    @classmethod
    def of(cls, value: Any, where: str) -> _Token:
        """From text, or from an object with `content`; CheckpointError for anything else."""
        content = value.get("content") if isinstance(value, dict) else value
        if not isinstance(content, str):
            raise CheckpointError(f"{where} is {value!r:.80}, expected a token")
        flags = [(name, value[name]) for name in _FLAGS if isinstance(value, dict) and name in value]
        if not all(isinstance(flag, bool) for _, flag in flags):
            raise CheckpointError(f"{where} is {value!r:.200}, expected flags that are true or false")
        return cls(content, tuple(flags))

    def added(self, special: bool) -> AddedToken:
        """For the library; `special`: what it is where its file does not say."""
        flags = dict(self.flags)
        special = flags.pop("special", special) or special
        return AddedToken(self.content, special=special, **({"normalized": not special} | flags))


def read_tokenizer(directory: Path) -> tuple[str, str | None]:
    """`tokenizer.json` with every added token and what each is for, and the chat template or None.

    CheckpointError names the file that is missing or damaged.
    """
    config = read_json(directory / _CONFIG) if (directory / _CONFIG).is_file() else {}
    path = directory / _TOKENIZER
    try:
        text = read_text(path, "transformers' AutoTokenizer can save one: save_pretrained")
        fields = parse_object(text)
        costs = check_bounds(fields)
        _check_settings(config, fields, directory / _CONFIG)
        known = fields.get("added_tokens") or []
        if not isinstance(known, list) or not all(isinstance(entry, dict) for entry in known):
            raise CheckpointError("added_tokens is no list of objects")
        tokens = _Tokens.of(directory, config)
        missing = tokens.missing({entry.get("content"): entry for entry in known})
        costs.check_added(token.content for token in missing)
        if missing:
            with library_errors(CheckpointError, "the tokenizer cannot be read"):
                tokenizer = Tokenizer.from_str(text)
                tokenizer.add_tokens(missing)
                text = str(tokenizer.to_str())
        return with_roles(text, tokens.named, additional=set(tokens.extra)), _chat_template(directory, config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # JsonError, halves of surrogate pairs
        raise CheckpointError(f"{path}: damaged ({error})") from error
    except CheckpointError as error:
        named = str(error).startswith(str(directory))
        raise error if named else CheckpointError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _Tokens:
    """Tokens that files beside `tokenizer.json` list: numbered ones, named ones (name -> content), and extra ones."""

    numbered: tuple[_Token, ...]
    named: Mapping[str, str]
    extra: Mapping[str, _Token]
    tokens: Mapping[str, _Token]  # of the named ones

    @classmethod
    def of(cls, directory: Path, config: dict[str, Any]) -> _Tokens:
        path, fields, numbered = directory / _CONFIG, dict(config), {}
        newer, older = _EXTRA
        if older in fields and not fields.get(newer):
            fields[newer] = fields.pop(older)
        decoder = fields.get("added_tokens_decoder")
        if decoder is not None:
            numbered = _numbered(decoder, path)
        else:  # transformers reads the older files only then
            if (directory / _SPECIAL_MAP).is_file():
                fields = _with_special_map(fields, read_json(directory / _SPECIAL_MAP))
            if (directory / _ADDED).is_file():
                added = read_json(directory / _ADDED)
                numbered = _numbered({str(index): name for name, index in added.items()}, directory / _ADDED)
        extra: Any = fields.get(newer if newer in fields else older) or []
        named = {name: value for name, value in fields.items() if value and name.endswith("_token")}
        if isinstance(extra, dict):
            named, extra = named | extra, []
        if not isinstance(extra, list):
            raise CheckpointError(f"{path}: {_EXTRA[1]} is {extra!r:.80}, expected a list")
        ordered = [*(name for name in _STANDARD if name in named), *(name for name in named if name not in _STANDARD)]
        tokens = {
            name: _Token.of(named[name], f"{path}: {name}")
            for name in ordered
            if name in _STANDARD or isinstance(named[name], str | dict)
        }
        extras = [_Token.of(value, f"{path}: {_EXTRA[1]}") for value in extra]
        return cls(
            tuple(numbered[index] for index in sorted(numbered)),
            {name: token.content for name, token in tokens.items()},
            {token.content: token for token in extras},
            tokens,
        )

    def missing(self, known: Mapping[Any, Mapping[str, Any]]) -> list[AddedToken]:
        """What transformers adds to a tokenizer that has `known`, in its order: numbered, named, extra tokens."""
        special = {*self.named.values(), *self.extra}
        adding = {
            token.content: token.added(token.content in special)
            for token in self.numbered
            if any(known.get(token.content, {}).get(name) != flag for name, flag in token.flags)
            or token.content not in known
        }
        for token in (*self.tokens.values(), *self.extra.values()):
            if token.content not in known and token.content not in adding:
                adding[token.content] = token.added(True)
        return list(adding.values())


def _with_special_map(fields: dict[str, Any], special_map: dict[str, Any]) -> dict[str, Any]:
    """`tokenizer_config.json` with what `special_tokens_map.json` says over it; of extra tokens under the older name
    the first file's count, under the newer one both files' do.
    """
    newer = _EXTRA[0]
    before, more = fields.get(newer), special_map.get(newer)
    if isinstance(before, list) and isinstance(more, list):
        special_map = {**special_map, newer: [*before, *(token for token in more if token not in before)]}
    return fields | special_map


def _check_settings(config: Mapping[str, Any], tokenizer: Mapping[str, Any], path: Path) -> None:
    """Settings of tokenizer_config.json that change ids and are not in `tokenizer.json`: refused, or warned of."""
    if config.get("split_special_tokens"):
        raise CheckpointError(f"{path}: split_special_tokens is true, which is not supported (only false)")
    wanted, step = config.get("add_prefix_space"), tokenizer.get("pre_tokenizer")
    steps = step.get("pretokenizers") or [step] if isinstance(step, Mapping) else []
    prefixed = [
        one.get("add_prefix_space") for one in steps if isinstance(one, Mapping) and one.get("type") == "ByteLevel"
    ]
    if isinstance(wanted, bool) and prefixed and wanted not in prefixed:
        _log.warning(
            "%s: add_prefix_space is %s, which tokenizer.json contradicts: tokenizer.json counts (versions of "
            "transformers differ)", path, str(wanted).lower(),
        )  # fmt: skip


def _numbered(decoder: Any, path: Path) -> dict[int, _Token]:
    if not isinstance(decoder, dict) or not all(index.isascii() and index.isdigit() for index in decoder):
        raise CheckpointError(f"{path}: added tokens are not listed by their numbers")
    return {int(index): _Token.of(value, f"{path}: added token {index}") for index, value in decoder.items()}


def _chat_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    """The templates of files, else of tokenizer_config.json, as one (see chat_templates.py)."""
    files = {chat_templates.DEFAULT: directory / _TEMPLATE} if (directory / _TEMPLATE).is_file() else {}
    files |= {path.stem: path for path in named_template_files(directory)}
    if files:
        return chat_templates.joined({name: read_text(path) for name, path in files.items()})
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
        return chat_templates.joined({entry["name"]: entry.get("template") for entry in named})
    return template if isinstance(template, str) else None


def named_template_files(directory: Path) -> list[Path]:
    """Files of the templates beside the default one."""
    return sorted(path for path in (directory / _NAMED_TEMPLATES).glob("*.jinja") if path.is_file())


def read_text(path: Path, hint: str = "") -> str:
    """A UTF-8 file; CheckpointError where it is missing, anything else, or too large."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file" + (f" ({hint})" if hint else ""))
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 text ({error})") from error
    except JsonError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_json(path: Path, hint: str = "") -> dict[str, Any]:
    """The JSON object in a file; CheckpointError when the file is missing or holds anything else."""
    text = read_text(path, hint)
    try:
        return parse_object(text)
    except JsonError as error:
        raise CheckpointError(f"{path}: {error}") from error
