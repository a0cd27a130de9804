"""A Hugging Face directory: `config.json`, safetensors (one file, or shards with an index), `tokenizer.json`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from spqt_ti.bounded_json import parse_object
from spqt_ti.errors import CheckpointError
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.config_json import token_ids
from spqt_ti.sources import packed
from spqt_ti.sources.checkpoint import Checkpoint, FloatArray, StoredTensor, split_fused
from spqt_ti.sources.huggingface_tokenizer import FILES, named_template_files, read_json, read_tokenizer
from spqt_ti.sources.packed import Packing

# safetensors' name of a type -> the NumPy type of the stored bytes (little-endian; NumPy has no bf16).
_STORED: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_WHOLE: dict[str, np.dtype[Any]] = {"I32": np.dtype("<i4"), "U32": np.dtype("<u4"), "I64": np.dtype("<i8")}
_CONFIGS = ("config.json", "generation_config.json")
_INDEX = "model.safetensors.index.json"
_MOST_HEADER = 16 << 20  # bytes; a file with the tensors of 400 billion parameters has 0.2 MB
_PICKLES = ("*.bin", "*.pt", "*.pth")


def open_directory(directory: Path) -> Checkpoint:
    """Open a directory as `transformers` saves it; reads only headers and JSON. CheckpointError names the file."""
    config, packing = _read_config(directory)
    tensors: dict[str, StoredTensor] = {}
    weights = _weight_files(directory)
    for file in weights.files:
        for name, stored in read_header(file).items():
            if weights.files_of.get(name, file) != file:
                continue  # the index names another file for it
            if name in tensors:
                raise CheckpointError(f"{file}: tensor {name} is in {Path(tensors[name].location).name} as well")
            tensors[name] = stored
    if packing is not None:
        try:
            tensors = packed.dequantised(tensors, packing)
        except CheckpointError as error:
            named = str(error).startswith(str(directory))
            raise error if named else CheckpointError(f"{directory}: {error}") from error
    _refuse_quantised(directory, tensors)
    config = _drop_harmless(tensors, config)
    if config.architecture.fused:
        tensors = split_fused(tensors, config)
    tokenizer_json, chat_template = read_tokenizer(directory)
    return Checkpoint(directory, config, tokenizer_json, chat_template, tensors)


def model_files(directory: Path) -> list[Path]:
    """The files that make the model in a directory, whatever else is there; CheckpointError without weights."""
    names = (*_CONFIGS, *packed.FILES, *FILES)
    found = [path for name in names if (path := directory / name).is_file()]
    return found + named_template_files(directory) + _weight_files(directory).files


def _read_config(directory: Path) -> tuple[ModelConfig, Packing | None]:
    path, generation_path = (directory / name for name in _CONFIGS)
    fields = read_json(path, "this is not a Hugging Face model directory")
    generation = read_json(generation_path) if generation_path.is_file() else {}
    try:
        packing = packed.read_packing(directory, fields)
        if packing is not None:
            fields = {name: value for name, value in fields.items() if name not in packed.CONFIG_KEYS}
        config = ModelConfig.from_dict(fields)
        # What generation stops at wins: an instruct model often lists its end-of-turn token only there.
        eos = token_ids(generation.get("eos_token_id"))
        return replace(config, eos_token_ids=eos) if eos else config, packing
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _Weights:
    """Files of weights, and where an index says that a tensor is."""

    files: list[Path]
    files_of: dict[str, Path] = field(default_factory=dict)


def _weight_files(directory: Path) -> _Weights:
    """model.safetensors, else the files that an index lists: transformers' order."""
    single, index = directory / "model.safetensors", directory / _INDEX
    if single.is_file():
        return _Weights([single])
    if index.is_file():
        return _shards(directory, index)
    pickles = [file.name for pattern in _PICKLES for file in sorted(directory.glob(pattern))]
    if pickles:
        raise CheckpointError(
            f"{directory}: {pickles[0]} is a pickle, which may run code when it is opened; convert the model to "
            "safetensors (transformers: save_pretrained(..., safe_serialization=True))"
        )
    raise CheckpointError(f"{directory}: neither model.safetensors nor model.safetensors.index.json is there")


def _shards(directory: Path, index: Path) -> _Weights:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing")
    files_of: dict[str, Path] = {}
    for name, shard in weight_map.items():
        # An index must not lead out of its directory.
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.isprintable():
            raise CheckpointError(
                f"{index}: tensor {name:.80} is said to be in {shard!r:.80}, not a file of this directory"
            )
        files_of[name] = directory / shard
    files = list(dict.fromkeys(files_of.values()))
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: this shard is missing, though {index.name} lists it")
    return _Weights(files, files_of)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Names, shapes and files of the tensors of one safetensors file. Its library verifies header and length."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > _MOST_HEADER:
        raise CheckpointError(f"{path}: not a whole safetensors file (its header would have {size:,} bytes)")
    try:
        with safe_open(path, framework="numpy"):
            pass
        with open(path, "rb") as file:
            file.seek(8)
            header = parse_object(file.read(size))
        header.pop("__metadata__", None)
        return {name: _stored_tensor(path, entry, 8 + size) for name, entry in header.items()}
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error


def _stored_tensor(path: Path, entry: dict[str, Any], data_start: int) -> StoredTensor:
    shape, kind = tuple(int(size) for size in entry["shape"]), str(entry["dtype"])
    offset = data_start + int(entry["data_offsets"][0])

    def read(dtype: np.dtype[Any]) -> np.ndarray:
        with open(path, "rb") as file:
            file.seek(offset)
            return np.fromfile(file, dtype=dtype, count=math.prod(shape))

    def load() -> FloatArray:
        raw = read(_STORED[kind])
        return (bf16_to_f32(raw) if kind == "BF16" else raw.astype(np.float32)).reshape(shape)

    def read_whole() -> np.ndarray:
        return read(_WHOLE[kind]).reshape(shape)

    problem = "" if kind in _STORED else f"is {kind}, expected F32, F16 or BF16"
    return StoredTensor(shape, str(path), load, problem, read_whole if kind in _WHOLE else None)


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
    """Drop what transformers leaves out as well: RoPE tables of old files and the second copy of a tied embedding; and
    what the architecture has beside the model.

    A head that differs from the embedding is the model's, whatever tie_word_embeddings says: the config returned tells.
    """
    for name in list(tensors):
        if name.endswith("rotary_emb.inv_freq") or any(part in name for part in config.architecture.unused):
            del tensors[name]
    head, embedding = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if head is None or not config.tie_word_embeddings:
        return config
    if embedding is None:  # the copy that was saved is the head
        tensors["model.embed_tokens.weight"] = tensors.pop("lm_head.weight")
        return config
    readable = head.shape == embedding.shape and not head.problem and not embedding.problem
    # Tied models are small: two embeddings in memory are what quantising them takes as well.
    if readable and np.array_equal(head.load(), embedding.load()):
        del tensors["lm_head.weight"]
        return config
    return replace(config, tie_word_embeddings=False)
