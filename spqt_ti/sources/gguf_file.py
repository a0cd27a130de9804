"""A `.gguf` file: metadata, and tensors brought back to Hugging Face's names and row order.

Types, block sizes and dequantisation come from the `gguf` package. The header is parsed here: the package's own reader
takes 2.3 s for SmolLM2's vocabulary (one NumPy array per string) where this takes 0.1 s, and answers a truncated file
with whatever NumPy raises, while a user needs to know which tensor is cut off.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from spqt_ti.errors import CheckpointError
from spqt_ti.model.architectures import ARCHITECTURES, WindowRule, by_gguf_name
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.config_json import token_ids
from spqt_ti.model.rope import RopeScaling, llama3_frequency_factors
from spqt_ti.sources.checkpoint import Checkpoint, FloatArray, StoredTensor
from spqt_ti.sources.gguf_tokenizer import end_of_turn_ids, tokenizer_json

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_MAX_NAME = 256
_CHUNK_VALUES = 1 << 20  # dequantised at a time: keeps the temporaries of gguf.quants in the cache and memory low
_READABLE = {
    GGMLQuantizationType.F32,
    GGMLQuantizationType.F16,
    GGMLQuantizationType.BF16,
    GGMLQuantizationType.Q8_0,
    GGMLQuantizationType.Q4_0,
    GGMLQuantizationType.Q4_1,
    GGMLQuantizationType.Q5_0,
    GGMLQuantizationType.Q5_1,
    GGMLQuantizationType.Q2_K,
    GGMLQuantizationType.Q3_K,
    GGMLQuantizationType.Q4_K,
    GGMLQuantizationType.Q5_K,
    GGMLQuantizationType.Q6_K,
}
_SCALARS: dict[GGUFValueType, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
    GGUFValueType.BOOL: np.dtype("?"),
}
_GLOBAL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_TABLE = "rope_freqs.weight"


@dataclass(frozen=True)
class GgufTensor:
    """One entry of the header. `shape` is [out, in] (the file has it reversed); `offset` counts from byte 0."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int

    @property
    def row_bytes(self) -> int:
        block, size = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // block * size

    @property
    def nbytes(self) -> int:
        return self.row_bytes * math.prod(self.shape[:-1])

    @property
    def problem(self) -> str:
        """Why `GgufFile.load` cannot read it, or nothing."""
        if self.kind in _READABLE:
            return ""
        return f"is {self.kind.name}, expected one of {', '.join(sorted(kind.name for kind in _READABLE))}"


@dataclass(frozen=True)
class GgufFile:
    """Metadata and tensor entries of a GGUF file; `load` reads one tensor."""

    path: Path
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, GgufTensor] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Parse the header and verify that every tensor lies within the file; CheckpointError otherwise."""
        size = path.stat().st_size
        if size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            metadata, tensors = _Header(path, data).parse()
        for tensor in tensors.values():
            end = tensor.offset + tensor.nbytes
            if end > size:
                raise CheckpointError(
                    f"{path}: truncated: tensor {tensor.name} ends at byte {end}, the file has only {size} bytes"
                )
        return cls(path, metadata, tensors)

    def load(self, name: str) -> FloatArray:
        """f32 [*shape] of a tensor, as it is stored (no change of row order)."""
        tensor = self.tensors[name]
        rows, step = math.prod(tensor.shape[:-1]), max(1, _CHUNK_VALUES // tensor.shape[-1])
        values = np.empty((rows, tensor.shape[-1]), dtype=np.float32)
        raw = np.memmap(self.path, np.uint8, "r", tensor.offset, (rows, tensor.row_bytes))
        for start in range(0, rows, step):
            values[start : start + step] = _dequantize(np.asarray(raw[start : start + step]), tensor.kind)
        return values.reshape(tensor.shape)


def _dequantize(raw: np.ndarray, kind: GGMLQuantizationType) -> FloatArray:
    """u8 [n, row bytes] -> f32 [n, columns]."""
    if kind == GGMLQuantizationType.F32:
        return raw.view("<f4")
    if kind == GGMLQuantizationType.F16:
        return raw.view("<f2").astype(np.float32)
    with np.errstate(all="ignore"):  # NaN and infinity in a damaged file are the quantiser's to report
        return dequantize(raw, kind)


class _Header:
    """Cursor over the mapped file. Everything raised is a CheckpointError that names the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position = path, data, 0

    def parse(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        if self.data[:4] != _MAGIC:
            found = self.data[:4]
            raise CheckpointError(f"{self.path}: not a GGUF file (it starts with {found!r}, expected {_MAGIC!r})")
        self.position = 4
        version = self.number("<I", "version")
        if version not in _VERSIONS:
            raise CheckpointError(
                f"{self.path}: GGUF version {version} is not supported, expected 2 or 3 (little-endian)"
            )
        tensor_count, field_count = self.number("<Q", "tensor count"), self.number("<Q", "metadata count")
        metadata: dict[str, Any] = {}
        for _ in range(field_count):
            key = self.name("a metadata key")
            metadata[key] = self.value(self.kind(key), key)
        entries = [self.entry() for _ in range(tensor_count)]
        return metadata, self.placed(entries, metadata.get("general.alignment", 32))

    def placed(self, entries: list[GgufTensor], alignment: Any) -> dict[str, GgufTensor]:
        """The entries with offsets from byte 0: the data begin at the next aligned byte after the header."""
        if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
            raise CheckpointError(f"{self.path}: general.alignment is {alignment!r}, expected a multiple of 8")
        start = -(-self.position // alignment) * alignment
        tensors = {e.name: GgufTensor(e.name, e.shape, e.kind, start + e.offset) for e in entries}
        if len(tensors) != len(entries):
            raise CheckpointError(f"{self.path}: damaged: two tensors have the same name")
        return tensors

    def take(self, size: int, what: str) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise CheckpointError(
                f"{self.path}: truncated in the header: {what} needs {size} bytes at byte {self.position}, "
                f"the file has {len(self.data)}"
            )
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, form: str, what: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form), what))[0])

    def string(self, what: str) -> str:
        raw = self.take(self.number("<Q", what), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: damaged: {what} is not UTF-8 ({error})") from error

    def name(self, what: str) -> str:
        """A string that may go into messages."""
        name = self.string(what)
        if len(name) > _MAX_NAME or not name.isprintable():
            raise CheckpointError(f"{self.path}: damaged: {what} is {name[:40]!r}")
        return name

    def kind(self, key: str) -> GGUFValueType:
        number = self.number("<I", key)
        try:
            return GGUFValueType(number)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: damaged: {key} has the unknown type {number}") from error

    def value(self, kind: GGUFValueType, key: str) -> Any:
        """A str, bool, int, float, a list of str or a NumPy array."""
        if kind == GGUFValueType.STRING:
            return self.string(key)
        if kind == GGUFValueType.ARRAY:
            return self.array(key)
        dtype = _SCALARS[kind]
        return np.frombuffer(self.take(dtype.itemsize, key), dtype)[0].item()

    def array(self, key: str) -> Any:
        kind, count = self.kind(key), self.number("<Q", key)
        if kind == GGUFValueType.STRING:
            return [self.string(key) for _ in range(count)]
        if kind == GGUFValueType.ARRAY:
            raise CheckpointError(f"{self.path}: {key} is an array of arrays, which is not supported")
        return np.frombuffer(self.take(_SCALARS[kind].itemsize * count, key), _SCALARS[kind])

    def entry(self) -> GgufTensor:
        """One tensor's entry, its offset still counted from the start of the data."""
        name = self.name("a tensor name")
        dimensions = self.number("<I", name)
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise CheckpointError(f"{self.path}: damaged: tensor {name} has {dimensions} dimensions")
        shape = tuple(self.number("<Q", name) for _ in range(dimensions))[::-1]
        number = self.number("<I", name)
        try:
            kind = GGMLQuantizationType(number)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: tensor {name} has the unknown type {number}") from error
        block = GGML_QUANT_SIZES[kind][0]
        if not all(shape) or shape[-1] % block:
            raise CheckpointError(f"{self.path}: damaged: tensor {name} of type {kind.name} has shape {list(shape)}")
        return GgufTensor(name, shape, kind, self.number("<Q", name))


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file; CheckpointError names file, tensor or metadata key."""
    file = GgufFile.open(path)
    try:
        config = read_config(file)
        tokenizer = tokenizer_json(file.metadata)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (TypeError, ValueError, OverflowError) as error:
        # Each key may hold any type; those that matter most are checked one by one, the rest ends here.
        raise CheckpointError(f"{path}: damaged: metadata of an unexpected type ({error})") from error
    template = file.metadata.get("tokenizer.chat_template")
    return Checkpoint(path, config, tokenizer, template if isinstance(template, str) else None, _tensors(file, config))


def read_config(file: GgufFile) -> ModelConfig:
    """ModelConfig from the metadata, and from the tensors what the metadata do not say (ties, biases, RoPE table)."""
    meta = _ModelMetadata(file.metadata)
    meta.refuse_unsupported()
    row = meta.architecture
    heads, hidden = meta.whole("attention.head_count"), meta.whole("embedding_length")
    head_dim = _head_dim(meta, hidden, heads)
    theta = meta.real("rope.freq_base", 10000.0)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError("tensor token_embd.weight is missing, expected shape [vocabulary, hidden]")
    return ModelConfig(
        hidden_size=hidden,
        intermediate_size=meta.whole("feed_forward_length"),
        num_hidden_layers=meta.whole("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=meta.whole("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=meta.whole("vocab_size", embedding.shape[0]),
        max_position_embeddings=meta.whole("context_length"),
        rms_norm_eps=meta.epsilon(),
        rope_theta=theta,
        rope_scaling=_rope_scaling(file, meta, theta, head_dim),
        tie_word_embeddings="output.weight" not in file.tensors,
        attention_bias=row.qkv_bias is None and _any(file, r"blk\.\d+\.attn_(q|k|v|output)\.bias"),
        mlp_bias=row.mlp_bias is None and _any(file, r"blk\.\d+\.ffn_(gate|up|down)\.bias"),
        bos_token_id=next(iter(token_ids(file.metadata.get("tokenizer.ggml.bos_token_id"))), None),
        eos_token_ids=end_of_turn_ids(file.metadata),
        model_type=row.model_type,
        sliding_window=meta.window(),
    )


def _any(file: GgufFile, pattern: str) -> bool:
    return any(re.fullmatch(pattern, name) for name in file.tensors)


class _ModelMetadata:
    """The keys that begin with the architecture's name, types checked. CheckpointError for an unknown architecture."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        name = metadata.get("general.architecture")
        self.prefix = str(name)
        row = by_gguf_name(self.prefix, window=bool(metadata.get(f"{name}.attention.sliding_window", 0)))
        if row is None:
            known = ", ".join(dict.fromkeys(row.gguf_name for row in ARCHITECTURES.values()))
            raise CheckpointError(f"architecture {name!r} is not supported (only {known})")
        self.architecture = row

    def key(self, key: str) -> str:
        """The whole name of a key, for messages too."""
        return f"{self.prefix}.{key}"

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.metadata.get(self.key(key), default)
        if value is None:
            raise CheckpointError(f"metadata key {self.key(key)} is missing")
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()  # one number per layer, the same in all of them
        if isinstance(value, bool) or not isinstance(value, int):
            # Per-layer arrays: a model whose blocks differ in shape.
            raise CheckpointError(f"metadata key {self.key(key)} is {value!r}, expected one whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(self.key(key), default)
        if value is None:
            raise CheckpointError(f"metadata key {self.key(key)} is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CheckpointError(f"metadata key {self.key(key)} is {value!r}, expected a number")
        return float(value)

    def window(self) -> int | None:
        """Positions of a sliding window in every layer; None without one. llama.cpp ignores the key for most of the
        architectures here; a model that was trained with a window is another one without it.
        """
        window, positions = self.whole("attention.sliding_window", 0), self.whole("context_length")
        if window < 0 or (0 < window < positions and self.architecture.window is not WindowRule.EVERY_LAYER):
            raise CheckpointError(f"sliding_window ({window} of {positions} positions) is not supported for "
                                  f"architecture {self.prefix!r}")  # fmt: skip
        return window if 0 < window < positions else None

    def epsilon(self) -> float:
        """The f32 epsilon as the decimal that was meant: 1e-05 rather than 9.999999747378752e-06."""
        return float(np.format_float_scientific(np.float32(self.real("attention.layer_norm_rms_epsilon")), unique=True))

    def refuse_unsupported(self) -> None:
        if self.whole("expert_count", 0):
            raise CheckpointError(
                f"mixtures of experts are not supported ({self.key('expert_count')} is {self.whole('expert_count')})"
            )
        parts = self.metadata.get("split.count", 0)
        if parts > 1:
            raise CheckpointError(f"this is one of {parts} parts; join them first (llama-gguf-split --merge)")


def _head_dim(meta: _ModelMetadata, hidden: int, heads: int) -> int:
    if heads <= 0:
        raise CheckpointError(f"{meta.key('attention.head_count')} is {heads}, expected a positive whole number")
    head_dim = meta.whole("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if meta.whole(key, head_dim) != head_dim:
            raise CheckpointError(f"{meta.key(key)} is {meta.whole(key)}, expected the head size {head_dim}")
    return head_dim


def _rope_scaling(file: GgufFile, meta: _ModelMetadata, theta: float, head_dim: int) -> RopeScaling | None:
    """From the metadata (linear) or from the table of frequency factors that Llama 3.1 and later carry as a tensor."""
    kind = file.metadata.get(meta.key("rope.scaling.type"), "none")
    factor = meta.real("rope.scaling.factor", meta.real("rope.scale_linear", 1.0))
    linear = kind == "linear" or (kind == "none" and meta.key("rope.scale_linear") in file.metadata)
    if kind not in ("none", "linear"):
        raise CheckpointError(f"RoPE scaling {kind!r} is not supported (only linear, and Llama 3's table)")
    if _ROPE_TABLE not in file.tensors:
        return RopeScaling("linear", factor=factor) if linear and factor != 1.0 else None
    if file.tensors[_ROPE_TABLE].problem:
        raise CheckpointError(f"tensor {_ROPE_TABLE} {file.tensors[_ROPE_TABLE].problem}")
    if linear and factor != 1.0:
        raise CheckpointError(f"RoPE has linear scaling and {_ROPE_TABLE} at the same time, which is not supported")
    return _table_scaling(file.load(_ROPE_TABLE).reshape(-1), theta, head_dim, meta.whole("context_length"))


def _table_scaling(factors: FloatArray, theta: float, head_dim: int, positions: int) -> RopeScaling | None:
    """Frequency factors f32 [head_dim/2] as Llama 3's formula where it reproduces them, else as a table."""
    if factors.size != head_dim // 2:
        raise CheckpointError(f"tensor {_ROPE_TABLE} has {factors.size} values, expected head_dim/2 = {head_dim // 2}")
    if np.all(factors == 1.0):
        return None
    plain = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if np.all(np.isfinite(factors)) and factors.max() > 1.0:
        # The constants of every Llama 3.1-3.3; only the factor differs (8, 32).
        published = RopeScaling("llama3", float(factors.max()), 1.0, 4.0, 8192)
        if np.allclose(factors, llama3_frequency_factors(plain, published), rtol=1e-5, atol=0):
            return published
    table = tuple(float(f) for f in factors)
    return RopeScaling("longrope", original_max_position_embeddings=positions, frequency_factors=table)


def _tensors(file: GgufFile, config: ModelConfig) -> dict[str, StoredTensor]:
    """Hugging Face names -> tensors, q and k in Hugging Face's row order."""
    tensors: dict[str, StoredTensor] = {}
    for name, entry in file.tensors.items():
        if name == _ROPE_TABLE or name.endswith(".attn_rot_embd.weight"):  # in the config, or a table that we compute
            continue
        mapped = huggingface_name(name) or name
        location, load = f"{file.path} ({name})", _loader(file, name, mapped, config)
        tensors[mapped] = StoredTensor(entry.shape, location, load, entry.problem)
    if config.attention_bias or config.mlp_bias:
        _complete_biases(tensors, file, config)
    return tensors


def _complete_biases(tensors: dict[str, StoredTensor], file: GgufFile, config: ModelConfig) -> None:
    """Zeros for biases that are not there: GGUF may have some of them, Hugging Face's flags know all or none."""
    if config.num_hidden_layers > len(tensors):
        return  # damaged: for check_tensors to say
    for name, shape in config.tensor_shapes().items():
        if name.endswith(".bias") and name not in tensors:
            tensors[name] = StoredTensor(shape, str(file.path), partial(_zeros, shape))


def _zeros(shape: tuple[int, ...]) -> FloatArray:
    return np.zeros(shape, dtype=np.float32)


def _loader(file: GgufFile, name: str, mapped: str, config: ModelConfig) -> Callable[[], FloatArray]:
    if not config.architecture.gguf_permuted:
        return lambda: file.load(name)
    if ".q_proj." in mapped:
        return lambda: unpermute(file.load(name), config.num_attention_heads)
    if ".k_proj." in mapped:
        return lambda: unpermute(file.load(name), config.num_key_value_heads)
    return lambda: file.load(name)


def huggingface_name(name: str) -> str | None:
    """`blk.0.attn_q.weight` -> `model.layers.0.self_attn.q_proj.weight`; None for an unknown name."""
    stem, _, suffix = name.rpartition(".")
    if stem in _GLOBAL_NAMES:
        return f"{_GLOBAL_NAMES[stem]}.{suffix}"
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if block and block[2] in _BLOCK_NAMES:
        return f"model.layers.{block[1]}.{_BLOCK_NAMES[block[2]]}.{suffix}"
    return None


def unpermute(w: FloatArray, heads: int) -> FloatArray:
    """[heads * head_dim, ...] from ggml's RoPE order (pairs 2i, 2i + 1) to Hugging Face's (pairs i, i + head_dim/2)."""
    pairs = w.reshape(heads, -1, 2, *w.shape[1:])  # [heads, head_dim/2, 2, ...]
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(w.shape)
