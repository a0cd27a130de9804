"""Tiny random Llamas on disk, as Hugging Face directories and GGUF files, written without torch.

    config = tiny_config(num_key_value_heads=1)
    weights = random_weights(config)
    write_huggingface(tmp_path, config, weights, dtype="bf16", shards=3)

`CASES` names the variations that every part of the package has to get right.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from spqt_ti.model.architectures import NormRule
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.rope import RopeScaling

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "In the beginning was the word, and the word was with the fox.",
    "A small model learns a few words: the, of, and, to, in, a, is, that.",
    "def hello(name):\n    return 'hello ' + name\n",
    "Ünïcode, naïve café, 日本語, and numbers such as 1234567890.",
)

LLAMA3_ROPE = RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
# Of the 36 entries that turn of a head of 48; a context of 64 is within the original one.
LONGROPE = RopeScaling(
    "longrope", original_max_position_embeddings=64, attention_factor=1.125,
    frequency_factors=tuple(1 + i / 8 for i in range(18)), long_factors=tuple(2 + i / 2 for i in range(18)),
)  # fmt: skip
GRANITE = (
    ("attention_multiplier", 0.25), ("embedding_multiplier", 3.0), ("logits_scaling", 4.0),
    ("residual_multiplier", 0.375),
)  # fmt: skip
# Variation -> changes to tiny_config. None of the sizes is a multiple of 256 unless it says so.
CASES: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mha": {"num_key_value_heads": 4},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "llama3_rope": {"rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0},
    "linear_rope": {"rope_scaling": RopeScaling("linear", 4.0)},
    "wide_heads": {"head_dim": 80},
    "narrow_heads": {"head_dim": 16},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "multiple_of_256": {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64},
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "qwen2": {"model_type": "qwen2", "sliding_window": 17, "layer_types": ("sliding_attention", "full_attention")},
    "qwen3": {"model_type": "qwen3", "attention_bias": True},
    "gelu": {"hidden_act": "gelu"},
    "gelu_tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu"},
    "relu2": {"hidden_act": "relu2"},
    "granite": {"model_type": "granite", "mlp_bias": True, "multipliers": GRANITE},
    "smollm3": {
        "model_type": "smollm3",
        "num_hidden_layers": 4,
        "rope_layers": (1, 1, 1, 0),
        "tie_word_embeddings": True,
    },
    "minicpm": {
        "model_type": "minicpm",
        "multipliers": (("dim_model_base", 48.0), ("scale_depth", 1.4), ("scale_emb", 3.0)),
    },
    "olmo2": {"model_type": "olmo2"},
    "phi3": {
        "model_type": "phi3",
        "sliding_window": 5,
        "partial_rotary_factor": 0.75,
        "rope_scaling": LONGROPE,
    },
    "gemma2": {
        "model_type": "gemma2",
        "hidden_act": "gelu_pytorch_tanh",
        "sliding_window": 5,
        "tie_word_embeddings": True,
        "layer_types": ("sliding_attention", "full_attention"),
        "multipliers": (
            ("attn_logit_softcapping", 2.0),
            ("final_logit_softcapping", 10.0),
            ("query_pre_attn_scalar", 40.0),
        ),
    },
    "gemma3_text": {
        "model_type": "gemma3_text",
        "hidden_act": "gelu_pytorch_tanh",
        "sliding_window": 5,
        "rope_theta": 1e6,
        "rope_local_theta": 1e4,
        "layer_types": ("sliding_attention", "full_attention"),
        "rope_scaling": RopeScaling("linear", 8.0),
        "multipliers": (
            ("final_logit_softcapping", None),
            ("query_pre_attn_scalar", 40.0),
        ),
    },
    "bamboo": {"model_type": "bamboo", "hidden_act": "fatrelu", "hidden_act_param": 0.01, "sliding_window": 5},
}

ARCHITECTURES = ("granite", "smollm3", "minicpm", "olmo2", "phi3", "gemma2", "gemma3_text")


def tiny_config(**changes: Any) -> ModelConfig:
    """Two layers, grouped queries, untied head, hidden size 192 (not a multiple of 256); `changes` replace fields."""
    fields: dict[str, Any] = {
        "hidden_size": 192,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 48,
        "vocab_size": 320,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_ids": (2,),
    }
    return ModelConfig(**(fields | changes))


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Hugging Face name -> f32, scaled so that activations stay near 1 and every part matters."""
    generator = np.random.default_rng(seed)
    weights = {}
    for name, shape in config.tensor_shapes().items():
        values = generator.standard_normal(shape)
        if "norm" in name:
            values = 1.0 + 0.2 * values - config.architecture.norm_offset
        elif len(shape) == 2 and "embed" not in name:
            values /= np.sqrt(shape[1])
        weights[name] = values.astype(np.float32)
    return weights


def rounded(weights: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """The f32 values that `weights` have after being stored as f32, f16 or bf16."""
    return {name: _decode(_encode(values, dtype), dtype).reshape(values.shape) for name, values in weights.items()}


def write_huggingface(
    directory: Path,
    config: ModelConfig,
    weights: dict[str, np.ndarray],
    *,
    dtype: str = "f32",
    shards: int = 1,
    chat_template: str | None = CHAT_TEMPLATE,
) -> Path:
    """config.json, safetensors (several shards: with an index), tokenizer.json and tokenizer_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    (directory / "tokenizer.json").write_text(tiny_tokenizer_json())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL_TOKENS[2]}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": chat_template}))
    names, weights = list(fused(config, weights)), fused(config, weights)
    if shards == 1:
        write_safetensors(directory / "model.safetensors", fused(config, weights), dtype)
        return directory
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in names[shard::shards]}
        write_safetensors(directory / file, part, dtype)
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def fused(config: ModelConfig, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As checkpoints of the architecture have them: q, k, v and gate, up stacked where it does that."""
    if not config.architecture.fused:
        return weights
    stacked: dict[str, list[np.ndarray]] = {}
    for name, values in weights.items():
        name = re.sub(r"\.[qkv]_proj", ".qkv_proj", re.sub(r"\.(gate|up)_proj", ".gate_up_proj", name))
        stacked.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in stacked.items()}


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str = "f32") -> None:
    """A safetensors file by hand, because its NumPy interface cannot write bf16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    chunks, position = [], 0
    for name, values in tensors.items():
        raw = _encode(values, dtype)
        header[name] = {
            "dtype": dtype.upper(),
            "shape": list(values.shape),
            "data_offsets": [position, position + len(raw)],
        }
        chunks.append(raw)
        position += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(chunks))


def write_gguf(
    path: Path,
    config: ModelConfig,
    weights: dict[str, np.ndarray],
    *,
    kind: str = "F32",
    metadata: dict[str, Any] | None = None,
    leave_out: tuple[str, ...] = (),
    tensors_per_part: int = 0,
) -> Path:
    """A GGUF file as llama.cpp's converter writes it; matrices of type `kind` (what gguf.quants can quantise).

    `metadata` adds or replaces keys (int, float, str, bool, list), `leave_out` drops tensors by their GGUF name. With
    `tensors_per_part` it is written in parts as `gguf` does, and the first one's path is returned.
    """
    writer = gguf.GGUFWriter(path, config.architecture.gguf_name, split_max_tensors=tensors_per_part)
    for key, value in (_gguf_metadata(config) | (metadata or {})).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
               list: writer.add_array}  # fmt: skip
        add[type(value)](key, value)
    _add_gguf_tokenizer(writer)
    offset = config.architecture.norm_offset
    for name, values in fused(config, weights).items():
        stored = gguf_name(name, config)
        values = values + np.float32(offset) if name.endswith("norm.weight") and offset else values
        if stored not in leave_out:
            _add_gguf_tensor(writer, stored, ggml_row_order(name, values, config), kind)
    if config.rope_scaling and config.rope_scaling.long_factors:
        for part, table in (
            ("short", config.rope_scaling.frequency_factors),
            ("long", config.rope_scaling.long_factors),
        ):
            writer.add_tensor(f"rope_factors_{part}.weight", np.array(table, np.float32))
    if config.rope_scaling and config.rope_scaling.rope_type == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_table(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(path.parent.glob(f"{path.stem}-*.gguf")) if tensors_per_part else path


def gguf_name(name: str, config: ModelConfig) -> str:
    """`model.layers.0.self_attn.q_proj.weight` -> `blk.0.attn_q.weight`."""
    stem, _, suffix = name.rpartition(".")
    table = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if stem in table:
        return f"{table[stem]}.{suffix}"
    _, _, layer, part = stem.split(".", 3)
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm"
        if config.architecture.norms is NormRule.BEFORE
        else "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
        "self_attn.qkv_proj": "attn_qkv",
        "mlp.gate_up_proj": "ffn_up",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        **{f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"},
        **{f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")},
    }
    return f"blk.{layer}.{parts[part]}.{suffix}"


def ggml_row_order(name: str, values: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Rows of q and k in ggml's RoPE order, for Llama: row 2i of a head is Hugging Face's row i, 2i + 1 its row
    i + head_dim/2.
    """
    if not config.architecture.gguf_permuted or "_norm" in name:
        return values
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if part in name:
            half = config.head_dim // 2
            order = [
                head * config.head_dim + i + side * half
                for head in range(count)
                for i in range(half)
                for side in (0, 1)
            ]
            return values[order]
    return values


def llama3_table(config: ModelConfig) -> np.ndarray:
    """f32 [head_dim/2]: frequency divisors of Llama 3.1, case by case as the paper's code has them."""
    rope = config.rope_scaling
    assert rope is not None
    table = []
    for i in range(0, config.head_dim, 2):
        wave = 2 * np.pi * config.rope_theta ** (i / config.head_dim)
        if wave < rope.original_max_position_embeddings / rope.high_freq_factor:
            table.append(1.0)
        elif wave > rope.original_max_position_embeddings / rope.low_freq_factor:
            table.append(rope.factor)
        else:
            smooth = rope.original_max_position_embeddings / wave - rope.low_freq_factor
            smooth /= rope.high_freq_factor - rope.low_freq_factor
            table.append(1 / ((1 - smooth) / rope.factor + smooth))
    return np.array(table, dtype=np.float32)


@functools.cache
def tiny_tokenizer_json() -> str:
    """Byte-level BPE with about 40 merges and the three special tokens; at most 320 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer.to_str()


def _gguf_metadata(config: ModelConfig) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.rotary_dim,
        "vocab_size": config.vocab_size,
    }
    if config.rope_scaling and config.rope_scaling.rope_type == "linear":
        metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_scaling.factor}
    if config.sliding_window is not None:
        metadata["attention.sliding_window"] = config.sliding_window
    if config.rope_scaling and config.rope_scaling.rope_type == "longrope":
        metadata |= {
            "rope.scaling.original_context_length": config.rope_scaling.original_max_position_embeddings,
            "rope.scaling.attn_factor": config.rope_scaling.attention_factor,
        }
    metadata |= _gguf_multipliers(config)
    return {f"{config.architecture.gguf_name}.{key}": value for key, value in metadata.items()} | {
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": config.eos_token_ids[0],
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _gguf_multipliers(config: ModelConfig) -> dict[str, float]:
    """As the converter writes them."""
    named, scales = dict(config.multipliers), config.scales
    if config.model_type == "granite":
        return {
            "embedding_scale": named["embedding_multiplier"],
            "residual_scale": named["residual_multiplier"],
            "attention.scale": named["attention_multiplier"],
            "logit_scale": named["logits_scaling"],
        }
    if config.model_type == "minicpm":
        return {
            "embedding_scale": scales.embedding,
            "residual_scale": scales.residual,
            "logit_scale": 1 / scales.logits,
        }
    return {name: value for name, value in named.items() if name.endswith("softcapping") and value}


def _add_gguf_tokenizer(writer: gguf.GGUFWriter) -> None:
    model = json.loads(tiny_tokenizer_json())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL_TOKENS else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]])


def _add_gguf_tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: str) -> None:
    values = np.ascontiguousarray(values)
    if values.ndim == 1 or kind == "F32":
        writer.add_tensor(name, values)
    elif kind == "F16":
        writer.add_tensor(name, values.astype(np.float16))
    else:
        quantized = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(values, quantized), raw_dtype=quantized)


def _encode(values: np.ndarray, dtype: str) -> bytes:
    if dtype != "bf16":
        return values.astype({"f32": "<f4", "f16": "<f2"}[dtype]).tobytes()
    bits = values.astype("<f4").view("<u4").astype(np.uint64)
    bits += 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even
    return (bits >> 16).astype("<u2").tobytes()


def _decode(raw: bytes, dtype: str) -> np.ndarray:
    if dtype != "bf16":
        return np.frombuffer(raw, {"f32": "<f4", "f16": "<f2"}[dtype]).astype(np.float32)
    return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
