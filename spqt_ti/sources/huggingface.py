"""A Hugging Face directory: `config.json`, safetensors (one file, or shards with an index), `tokenizer.json`."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from spqt_ti.errors import CheckpointError
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.config_json import token_ids
from spqt_ti.sources.checkpoint import Checkpoint, FloatArray, StoredTensor

# safetensors' name of a type -> the NumPy type of the stored bytes (little-endian; NumPy has no bf16).
_STORED: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_PICKLES = ("*.bin", "*.pt", "*.pth")


def open_directory(directory: Path) -> Checkpoint:
    """Open a directory as `transformers` saves it; reads only headers and JSON. CheckpointError names the file."""
    config = _read_config(directory)
    tensors: dict[str, StoredTensor] = {}
    for file, wanted in _weight_files(directory).items():
        for name, stored in _read_header(file).items():
            if wanted is None or name in wanted:
                tensors[name] = stored
    _refuse_quantised(directory, tensors)
    config = _drop_harmless(tensors, config)
    tokenizer_json = _read_text(
        directory / "tokenizer.json", "transformers' AutoTokenizer can save one: save_pretrained"
    )
    return Checkpoint(directory, config, tokenizer_json, _chat_template(directory), tensors)


def _read_config(directory: Path) -> ModelConfig:
    path, generation_path = directory / "config.json", directory / "generation_config.json"
    fields = read_json(path, "this is not a Hugging Face model directory")
    generation = read_json(generation_path) if generation_path.exists() else {}
    try:
        config = ModelConfig.from_dict(fields)
        # What generation stops at wins: an instruct model often lists its end-of-turn token only there.
        eos = token_ids(generation.get("eos_token_id"))
        return replace(config, eos_token_ids=eos) if eos else config
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _weight_files(directory: Path) -> dict[Path, set[str] | None]:
    """safetensors files -> the tensors to take from each (None: all of them)."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if index.exists():
        return _shards(directory, index)
    if single.exists():
        return {single: None}
    pickles = [file.name for pattern in _PICKLES for file in sorted(directory.glob(pattern))]
    if pickles:
        raise CheckpointError(
            f"{directory}: {pickles[0]} is a pickle, which may run code when it is opened; convert the model to "
            "safetensors (transformers: save_pretrained(..., safe_serialization=True))"
        )
    raise CheckpointError(f"{directory}: neither model.safetensors nor model.safetensors.index.json is there")


def _shards(directory: Path, index: Path) -> dict[Path, set[str] | None]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing")
    files: dict[Path, set[str] | None] = {}
    for name, shard in weight_map.items():
        # An index must not lead out of its directory.
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index}: tensor {name} is said to be in {shard!r}, not a file of this directory")
        names = files.setdefault(directory / shard, set())
        assert names is not None
        names.add(name)
    for file in files:
        if not file.exists():
            raise CheckpointError(f"{file}: this shard is missing, though {index.name} lists it")
    return files


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """Names, shapes and places of the tensors of one safetensors file. Its library verifies header and length."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {name: _stored_tensor(path, entry, 8 + size) for name, entry in header.items()}


def _stored_tensor(path: Path, entry: dict[str, Any], data_start: int) -> StoredTensor:
    shape, kind = tuple(entry["shape"]), entry["dtype"]
    offset = data_start + entry["data_offsets"][0]

    def load() -> FloatArray:
        with open(path, "rb") as file:
            file.seek(offset)
            raw = np.fromfile(file, dtype=_STORED[kind], count=math.prod(shape))
        return (bf16_to_f32(raw) if kind == "BF16" else raw.astype(np.float32)).reshape(shape)

    return StoredTensor(shape, str(path), load, "" if kind in _STORED else f"is {kind}, expected F32, F16 or BF16")


def bf16_to_f32(raw: np.ndarray) -> FloatArray:
    """bf16 as u16 [n] -> f32 [n], exact: bf16 is the upper half of an f32."""
    return (raw.astype(np.uint32) << 16).view(np.float32)


def _refuse_quantised(directory: Path, tensors: dict[str, StoredTensor]) -> None:
    """Folders whose config does not say that their weights are quantised: early GPTQ and AWQ, bitsandbytes."""
    for name in tensors:
        for ending, kind in (
            (".qweight", "GPTQ or AWQ"),
            (".absmax", "bitsandbytes"),
            (".weight_packed", "compressed"),
        ):
            if name.endswith(ending):
                raise CheckpointError(
                    f"{directory}: the weights are already quantised ({kind}: tensor {name}); start from f32, f16 or "
                    "bf16 weights"
                )


def _drop_harmless(tensors: dict[str, StoredTensor], config: ModelConfig) -> ModelConfig:
    """Drop what transformers leaves out as well: RoPE tables of old files and the second copy of a tied embedding.

    A head that differs from the embedding is the model's, whatever tie_word_embeddings says: the config returned tells.
    """
    for name in list(tensors):
        if name.endswith("rotary_emb.inv_freq"):
            del tensors[name]
    head, embedding = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if head is None or embedding is None or not config.tie_word_embeddings:
        return config
    readable = head.shape == embedding.shape and not head.problem and not embedding.problem
    # Tied models are small: two embeddings in memory are what quantising them takes as well.
    if readable and np.array_equal(head.load(), embedding.load()):
        del tensors["lm_head.weight"]
        return config
    return replace(config, tie_word_embeddings=False)


def _chat_template(directory: Path) -> str | None:
    """The template of chat_template.jinja, else of tokenizer_config.json (of several: the one named default)."""
    file = directory / "chat_template.jinja"
    if file.exists():
        return _read_text(file)
    path = directory / "tokenizer_config.json"
    template = read_json(path).get("chat_template") if path.exists() else None
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) else None


def _read_text(path: Path, hint: str = "") -> str:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file" + (f" ({hint})" if hint else ""))
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 text ({error})") from error


def read_json(path: Path, hint: str = "") -> dict[str, Any]:
    """The JSON object in a file; CheckpointError when the file is missing or holds anything else."""
    try:
        value = json.loads(_read_text(path, hint))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return value
