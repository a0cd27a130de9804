"""A `.gguf` file: metadata, and tensors brought back to Hugging Face's names and row order.

A model in several files is opened by its first. Types, block sizes and dequantisation come from the `gguf` package.
"""

from __future__ import annotations

import functools
import glob
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from spqt_ti.errors import CheckpointError
from spqt_ti.formats.names import NAMES
from spqt_ti.model.architectures import ARCHITECTURES, Architecture, WindowRule, by_gguf_name
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.config_json import ACTIVATIONS, pattern_of
from spqt_ti.model.rope import RopeScaling, llama3_frequency_factors
from spqt_ti.sources import chat_templates
from spqt_ti.sources.checkpoint import Checkpoint, FloatArray, StoredTensor, Superblocks, split_fused
from spqt_ti.sources.gguf_header import GgufTensor, read_header
from spqt_ti.sources.gguf_metadata import ArchitectureMetadata, multipliers, special_token
from spqt_ti.sources.gguf_tokenizer import declared_ends, tokenizer_json

_CHUNK_VALUES = 1 << 20  # dequantised at a time: keeps the temporaries of gguf.quants in the cache and memory low
_PLAIN: dict[GGMLQuantizationType, np.dtype[Any]] = {
    GGMLQuantizationType.F32: np.dtype("<f4"),
    GGMLQuantizationType.F16: np.dtype("<f2"),
    GGMLQuantizationType.F64: np.dtype("<f8"),
}
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_GLOBAL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FUSED_NAMES = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_NORM_NAMES = {
    "attn_norm": "attention_norm",
    "attn_q_norm": "q_norm",
    "attn_k_norm": "k_norm",
    "ffn_norm": "ffn_norm",
    "post_attention_norm": "after_attention_norm",
    "post_ffw_norm": "after_ffn_norm",
}
_ROPE_TABLE = "rope_freqs.weight"
_LONGROPE_TABLES = ("rope_factors_short.weight", "rope_factors_long.weight")


@dataclass(frozen=True)
class GgufFile:
    """Metadata and tensor entries of a GGUF file, or of all parts of one; `load` reads one tensor."""

    path: Path
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, GgufTensor] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Parse the header and those of the other parts; CheckpointError unless every tensor lies within its file."""
        metadata, tensors = read_header(path)
        for part in _other_parts(path, metadata):
            for name, tensor in read_header(part)[1].items():
                if name in tensors:
                    raise CheckpointError(f"{part}: damaged: tensor {name} is in {tensors[name].path.name} as well")
                tensors[name] = tensor
        total = metadata.get("split.tensors.count")
        if total is not None and (type(total) is not int or total != len(tensors)):
            raise CheckpointError(f"{path}: the parts hold {len(tensors)} tensors, expected {total!r:.80}")
        return cls(path, metadata, tensors)

    def load(self, name: str) -> FloatArray:
        """f32 [*shape] of a tensor, as it is stored (no change of row order)."""
        tensor = self.tensors[name]
        rows, step = math.prod(tensor.shape[:-1]), max(1, _CHUNK_VALUES // tensor.shape[-1])
        values = np.empty((rows, tensor.shape[-1]), dtype=np.float32)
        raw = self.load_bytes(name)
        for start in range(0, rows, step):
            values[start : start + step] = _dequantize(np.asarray(raw[start : start + step]), tensor.kind)
        return values.reshape(tensor.shape)

    def load_bytes(self, name: str) -> npt.NDArray[np.uint8]:
        """u8 [rows, bytes of a row] of a tensor, as it is stored."""
        tensor = self.tensors[name]
        rows = math.prod(tensor.shape[:-1])
        return np.memmap(tensor.path, np.uint8, "r", tensor.offset, (rows, tensor.row_bytes))


def _other_parts(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """Paths of the parts after the first, which must be the one that was opened; CheckpointError says which it is."""
    count, number = metadata.get("split.count", 0), metadata.get("split.no", 0)
    if not all(type(value) is int for value in (count, number)):
        raise CheckpointError(f"{path}: damaged: metadata split.count is {count!r:.80} and split.no {number!r:.80}")
    if count <= 1:
        return []
    named = PART.fullmatch(path.name)
    if named is None or int(named[3]) != count:
        raise CheckpointError(
            f"{path}: this is one of {count} parts; name it {path.stem}-{number + 1:05}-of-{count:05}.gguf beside the "
            "others, as llama-gguf-split does, and open the first"
        )
    names = [f"{named[1]}-{i + 1:05}-of-{count:05}.gguf" for i in range(count)]
    if number or named[2] != "00001":
        raise CheckpointError(f"{path}: this is part {number + 1} of {count}; open the first, {names[0]}")
    parts = [path.with_name(name) for name in names[1:]]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise CheckpointError(f"{path}: this is one of {count} parts, but {missing[0]} is not beside it")
    return parts


def named_parts(path: Path) -> list[Path]:
    """The file, or by its name all parts of it that are there."""
    named = PART.fullmatch(path.name)
    if named is None:
        return [path]
    parts = path.parent.glob(f"{glob.escape(named[1])}-?????-of-{named[3]}.gguf")
    return sorted({path, *(part for part in parts if part.is_file())})


@functools.cache
def _is_readable(kind: GGMLQuantizationType) -> bool:
    """Whether the installed `gguf` package dequantises a type."""
    if kind in _PLAIN:
        return True
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def problem(tensor: GgufTensor) -> str:
    """Why `GgufFile.load` cannot read it, or nothing."""
    if _is_readable(tensor.kind):
        return ""
    readable = sorted(kind.name for kind in GGML_QUANT_SIZES if _is_readable(kind))
    return f"is {tensor.kind.name}, expected one of {', '.join(readable)}"


def _dequantize(raw: np.ndarray, kind: GGMLQuantizationType) -> FloatArray:
    """u8 [n, row bytes] -> f32 [n, columns]."""
    with np.errstate(all="ignore"):  # NaN and infinity in a damaged file are the quantiser's to report
        if kind in _PLAIN:
            return raw.view(_PLAIN[kind]).astype(np.float32, copy=False)
        return dequantize(raw, kind)


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file; CheckpointError names file, tensor or metadata key."""
    file = GgufFile.open(path)
    try:
        config = read_config(file)
        tokenizer = tokenizer_json(file.metadata)
        template = _chat_template(file.metadata)
    except CheckpointError as error:
        named = str(error).startswith(f"{path}:")
        raise error if named else CheckpointError(f"{path}: {error}") from error
    except (TypeError, ValueError, OverflowError, IndexError) as error:
        # Each key may hold any type; those that matter most are checked one by one, the rest ends here.
        raise CheckpointError(f"{path}: damaged: metadata of an unexpected type ({error})") from error
    return Checkpoint(path, config, tokenizer, template, _tensors(file, config))


def _chat_template(metadata: Mapping[str, Any]) -> str | None:
    """The default template and the one for tools (`tokenizer.chat_template.NAME`) as one.

    No other value is read: text that nobody needs may be in any encoding.
    """
    key = "tokenizer.chat_template"
    keys = {chat_templates.DEFAULT: key, chat_templates.TOOL_USE: f"{key}.{chat_templates.TOOL_USE}"}
    if key not in metadata:
        keys[chat_templates.DEFAULT] = f"{key}.{chat_templates.DEFAULT}"
    return chat_templates.joined({name: metadata.get(place) for name, place in keys.items()})


def read_config(file: GgufFile) -> ModelConfig:
    """ModelConfig from the metadata, and from the tensors what the metadata do not say (ties, biases, RoPE table)."""
    row = _architecture(file.metadata)
    meta = ArchitectureMetadata(file.metadata, row.gguf_name)
    if meta.whole("expert_count", 0):
        raise CheckpointError(
            f"mixtures of experts are not supported ({meta.key('expert_count')} is {meta.whole('expert_count')})"
        )
    heads, hidden = meta.whole("attention.head_count"), meta.whole("embedding_length")
    head_dim = _head_dim(meta, row, hidden, heads)
    meta.check_known(head_dim, row)
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
        bos_token_id=special_token(file.metadata, "bos"),
        eos_token_ids=declared_ends(file.metadata),
        model_type=row.model_type,
        sliding_window=_window(meta, row),
        hidden_act=ACTIVATIONS[row.default(row.activation_key)],
        layer_types=_layer_types(meta, row),
        **_extras(meta, row, hidden, heads, head_dim),
    )


def _layer_types(meta: ArchitectureMetadata, row: Architecture) -> tuple[str, ...]:
    if row.window is not WindowRule.BY_LAYER:
        return ()
    return pattern_of(
        row, meta.whole("block_count"), meta.whole("attention.sliding_window_pattern", row.window_pattern)
    )


def _extras(meta: ArchitectureMetadata, row: Architecture, hidden: int, heads: int, head_dim: int) -> dict[str, Any]:
    """Fields of some architectures alone."""
    layers = meta.whole("block_count")
    fields: dict[str, Any] = {"multipliers": multipliers(meta, row, (hidden, heads, head_dim, layers))}
    if row.skips_rope:  # llama.cpp's fixed rule
        fields["rope_layers"] = tuple(int((layer + 1) % 4 != 0) for layer in range(layers)) if layers <= 1 << 16 else ()
    if row.local_rope:
        fields["rope_local_theta"] = meta.real("rope.freq_base_swa", row.default("rope_local_base_freq"))
    if row.partial_rope:
        fields["partial_rotary_factor"] = meta.whole("rope.dimension_count", head_dim) / head_dim
    return fields


def _any(file: GgufFile, pattern: str) -> bool:
    return any(re.fullmatch(pattern, name) for name in file.tensors)


def _architecture(metadata: Mapping[str, Any]) -> Architecture:
    name = metadata.get("general.architecture")
    row = by_gguf_name(str(name), window=bool(metadata.get(f"{name}.attention.sliding_window", 0)))
    if row is None:
        known = ", ".join(dict.fromkeys(row.gguf_name for row in ARCHITECTURES.values() if row.gguf_name))
        raise CheckpointError(f"architecture {name!r:.80} is not supported (only {known})")
    return row


def _window(meta: ArchitectureMetadata, row: Architecture) -> int | None:
    """Positions of a sliding window in every layer; None without one. llama.cpp ignores the key for most of the
    architectures here; a model that was trained with a window is another one without it.
    """
    window, positions = meta.whole("attention.sliding_window", 0), meta.whole("context_length")
    known = row.window in (WindowRule.EVERY_LAYER, WindowRule.BY_LAYER)
    if window < 0 or (0 < window < positions and not known):
        raise CheckpointError(
            f"sliding_window ({window} of {positions} positions) is not supported for architecture {meta.name!r}"
        )
    return window if 0 < window < positions else None


def _head_dim(meta: ArchitectureMetadata, row: Architecture, hidden: int, heads: int) -> int:
    if heads <= 0:
        raise CheckpointError(f"{meta.key('attention.head_count')} is {heads}, expected a positive whole number")
    head_dim = meta.whole("attention.key_length", hidden // heads)
    for key in ("attention.value_length", *(() if row.partial_rope else ("rope.dimension_count",))):
        if meta.whole(key, head_dim) != head_dim:
            raise CheckpointError(f"{meta.key(key)} is {meta.whole(key)}, expected the head size {head_dim}")
    return head_dim


def _rope_scaling(file: GgufFile, meta: ArchitectureMetadata, theta: float, head_dim: int) -> RopeScaling | None:
    """From the metadata (linear) or from the table of frequency factors that Llama 3.1 and later carry as a tensor.

    As in llama.cpp, a factor without a type is linear, and with the type "none" it has no effect.
    """
    if any(name in file.tensors for name in _LONGROPE_TABLES):
        return _longrope(file, meta)
    kind = meta.text("rope.scaling.type", "linear")
    factor = meta.real("rope.scaling.factor", meta.real("rope.scale_linear", 0.0))
    linear = kind == "linear" and factor not in (0.0, 1.0)
    if kind not in ("none", "linear"):
        raise CheckpointError(f"RoPE scaling {kind!r:.80} is not supported (only linear, and Llama 3's table)")
    if _ROPE_TABLE not in file.tensors:
        return RopeScaling("linear", factor=factor) if linear else None
    if problem(file.tensors[_ROPE_TABLE]):
        raise CheckpointError(f"tensor {_ROPE_TABLE} {problem(file.tensors[_ROPE_TABLE])}")
    if linear:
        raise CheckpointError(f"RoPE has linear scaling and {_ROPE_TABLE} at the same time, which is not supported")
    return _table_scaling(file, theta, head_dim, meta.whole("context_length"))


def _longrope(file: GgufFile, meta: ArchitectureMetadata) -> RopeScaling:
    """Two tables of factors; llama.cpp takes the long one in a context beyond the original, too."""
    tables = []
    for name in _LONGROPE_TABLES:
        if name not in file.tensors or problem(file.tensors[name]):
            raise CheckpointError(
                f"tensor {name} {problem(file.tensors[name]) if name in file.tensors else 'is missing'}"
            )
        tables.append(tuple(float(factor) for factor in file.load(name).reshape(-1)))
    return RopeScaling(
        "longrope",
        original_max_position_embeddings=meta.whole(
            "rope.scaling.original_context_length", meta.whole("context_length")
        ),
        frequency_factors=tables[0],
        long_factors=tables[1],
        attention_factor=meta.real("rope.scaling.attn_factor", 1.0),
    )


def _table_scaling(file: GgufFile, theta: float, head_dim: int, positions: int) -> RopeScaling | None:
    """Frequency factors f32 [head_dim/2] as Llama 3's formula where it reproduces them, else as a table."""
    size = math.prod(file.tensors[_ROPE_TABLE].shape)
    if size != head_dim // 2:
        raise CheckpointError(f"tensor {_ROPE_TABLE} has {size} values, expected head_dim/2 = {head_dim // 2}")
    factors = file.load(_ROPE_TABLE).reshape(-1)
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
        if name in (_ROPE_TABLE, *_LONGROPE_TABLES) or name.endswith(
            ".attn_rot_embd.weight"
        ):  # in the config, or a table that we compute
            continue
        mapped = huggingface_name(name, config) or name
        location, load = f"{entry.path} ({name})", _loader(file, name, mapped, config)
        kept = _superblocks(file, name, mapped, config)
        tensors[mapped] = StoredTensor(entry.shape, location, load, problem(entry), superblocks=kept)
    if config.architecture.fused:
        tensors = split_fused(tensors, config)
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
    offset = np.float32(config.architecture.norm_offset)
    if offset and mapped.endswith("norm.weight"):  # files have it in the weights
        return lambda: file.load(name) - offset
    heads = _permuted_heads(mapped, config)
    return lambda: unpermute(file.load(name), heads) if heads else file.load(name)


def _superblocks(file: GgufFile, name: str, mapped: str, config: ModelConfig) -> Superblocks | None:
    """The bytes of a matrix in Hugging Face's row order, if its type is a scheme of this package."""
    entry = file.tensors[name]
    scheme = entry.kind.name.lower()
    if scheme not in NAMES or len(entry.shape) != 2:
        return None
    heads = _permuted_heads(mapped, config)
    return Superblocks(
        scheme, lambda: unpermute(file.load_bytes(name), heads) if heads else np.array(file.load_bytes(name))
    )


def _permuted_heads(mapped: str, config: ModelConfig) -> int:
    """Heads of a matrix whose rows are in ggml's RoPE order; 0 for others."""
    if not config.architecture.gguf_permuted:
        return 0
    if ".q_proj." in mapped:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in mapped else 0


def huggingface_name(name: str, config: ModelConfig) -> str | None:
    """`blk.0.attn_q.weight` -> `model.layers.0.self_attn.q_proj.weight`; None for a name that is unknown, or not one of
    this architecture's.
    """
    stem, _, suffix = name.rpartition(".")
    if stem in _GLOBAL_NAMES:
        return f"{_GLOBAL_NAMES[stem]}.{suffix}"
    inside = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if inside and inside[2] in _NORM_NAMES:
        norms = {norm.role: norm.tensor for norm in config.norms()}
        norm = norms.get(_NORM_NAMES[inside[2]], "").removesuffix(".weight")
        return f"model.layers.{inside[1]}.{norm}.{suffix}" if norm else None
    names = _LAYER_NAMES | (_FUSED_NAMES if config.architecture.fused else {})
    return f"model.layers.{inside[1]}.{names[inside[2]]}.{suffix}" if inside and inside[2] in names else None


def unpermute(w: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """[heads * head_dim, ...] from ggml's RoPE order (pairs 2i, 2i + 1) to Hugging Face's (pairs i, i + head_dim/2)."""
    pairs = w.reshape(heads, -1, 2, *w.shape[1:])  # [heads, head_dim/2, 2, ...]
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(w.shape)
