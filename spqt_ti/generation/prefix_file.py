"""The KV cache of a prompt in a file, so that the next process need not compute it again.

A safetensors file: `tokens` i32 [n], `keys` and `values` f16 or f32 [layers, kv_heads, n, head_dim]. Its metadata has
what the bits depend on (the model and how it runs) and the SHA-256 of the three. Prefill is dense, so a sparsity policy
changes nothing in it and is no part of this.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from spqt_ti.atomic import written_whole
from spqt_ti.errors import GenerationError
from spqt_ti.model.runner import Llama, Prefix

FORMAT = 1
_NAMES = ("tokens", "keys", "values")


def save_prefix(llama: Llama, model: str, path: Path) -> int:
    """Write what the KV cache has of the last prompts, and return how many tokens that is.

    `model`: the container's fingerprint. The file appears whole or not at all. GenerationError where there is nothing
    to write, or it cannot be written.
    """
    with llama.exclusive():
        prefix = llama.prefix()
        identity = _identity(llama, model)
    if not len(prefix.tokens):
        raise GenerationError(f"{path}: no prompt has been computed yet, so there is no prefix to save")
    identity["sha256"] = _digest(prefix)
    tensors = {name: getattr(prefix, name) for name in _NAMES}
    try:
        with written_whole(path) as temporary:
            save_file(tensors, temporary, {name: str(value) for name, value in identity.items()})
    except (OSError, SafetensorError) as error:
        raise GenerationError(f"{path}: the prefix cannot be written ({error})") from error
    return len(prefix.tokens)


def load_prefix(llama: Llama, model: str, path: Path) -> int:
    """Put a saved prefix into the KV cache, for the next prompt that begins like it; returns its number of tokens.

    GenerationError for a damaged file, one of another model or another way to run it, and numbers that are not finite.
    """
    prefix = _read(path, _identity(llama, model))
    try:
        with llama.exclusive():
            llama.set_prefix(prefix)
    except GenerationError as error:
        raise GenerationError(f"{path}: damaged: {error}") from error
    return len(prefix.tokens)


def _identity(llama: Llama, model: str) -> dict[str, Any]:
    """What decides the bits of keys and values beside the tokens."""
    return {
        "format": FORMAT,
        "model": model,
        "program": _version(),
        "backend": llama.backend,
        "device": f"{llama.device} ({platform.machine()})",
        "helpers": os.environ.get("SPQT_NATIVE", "1"),
        "threads": llama.threads,
        "context": llama.context,
        "exact": llama.exact,
    }


def _version() -> str:
    try:
        return importlib.metadata.version("spqt-ti")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _read(path: Path, expected: dict[str, Any]) -> Prefix:
    try:
        with safe_open(path, framework="numpy") as file:
            _check_identity(path, file.metadata() or {}, expected)
            if sorted(file.keys()) != sorted(_NAMES):
                raise GenerationError(f"{path}: damaged: it holds {', '.join(file.keys())!r:.80}")
            prefix = Prefix(*(file.get_tensor(name) for name in _NAMES))
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise GenerationError(f"{path}: cannot be read as a saved prefix ({error})") from error
    if digest != _digest(prefix):
        raise GenerationError(f"{path}: damaged: its SHA-256 is not the one that it names; remove it")
    return prefix


def _check_identity(path: Path, found: dict[str, str], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if found.get(name) == str(value):
            continue
        if name == "format" or name not in found:
            raise GenerationError(f"{path}: not a prefix that this version saves ({name} is {found.get(name)!r:.80})")
        what = "another model" if name == "model" else f"{name} {found[name]:.80}, and this is {name} {value}"
        raise GenerationError(f"{path}: the prefix is of {what}; remove the file, or name another one")


def _digest(prefix: Prefix) -> str:
    digest = hashlib.sha256()
    for name in _NAMES:
        part: np.ndarray = getattr(prefix, name)
        digest.update(f"{name} {part.dtype.str} {part.shape}".encode())
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()
