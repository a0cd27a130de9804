"""What a `config.json` says, as the fields of a ModelConfig: every key is applied, known to be harmless, or refused.

Errors name the key. A key that nobody here has heard of is warned about: transformers ignores such keys as well, but a
fork of it may not.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from spqt_ti.errors import CheckpointError
from spqt_ti.model.architectures import ARCHITECTURES, Architecture, WindowRule, by_hf_class
from spqt_ti.model.rope import RopeScaling

_log = logging.getLogger(__name__)

Windows = tuple[int | None, tuple[str, ...]]  # sliding_window, layer_types
FULL, SLIDING = "full_attention", "sliding_attention"  # values of layer_types
# Spelling in config.json -> the function that kernels compute; all of transformers' spellings of these, and fatrelu.
# fmt: off
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "relu": "relu", "relu2": "relu2", "fatrelu": "fatrelu", "gelu": "gelu",
    "gelu_python": "gelu", "gelu_pytorch_tanh": "gelu_pytorch_tanh", "gelu_python_tanh": "gelu_pytorch_tanh",
    "gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh",
}
# fmt: on
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_MOST_LAYERS = 1 << 16  # of which a list is made
_KV_HEADS = "num_key_value_heads"
_POSITIONS, _ORIGINAL = "max_position_embeddings", "original_max_position_embeddings"
_APPLIED = frozenset(
    (*_SIZES, _POSITIONS, _ORIGINAL, _KV_HEADS, "architectures", "model_type", "head_dim", "hidden_act",
     "hidden_act_param", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor",
     "tie_word_embeddings", "attention_bias", "mlp_bias", "bos_token_id", "eos_token_id", "sliding_window",
     "use_sliding_window", "max_window_layers", "intermediate_sizes", "layer_types", "sliding_window_pattern",
     "_sliding_window_pattern", "hidden_activation", "rotates_down")
)  # fmt: skip
# Keys that change nothing of what one token's logits are: training, generation, storage, bookkeeping.
# fmt: off
_HARMLESS = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash",
    "_experts_implementation", "_flash_attn_2_enabled", "_name_or_path", "attention_dropout", "attn_dropout",
    "attn_implementation", "bad_words_ids", "cache_implementation", "begin_suppress_tokens", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_sparse_step", "decoder_start_token_id", "diversity_penalty",
    "do_sample", "dtype", "early_stopping", "embd_pdrop", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
    "gradient_checkpointing", "hidden_dropout", "hidden_dropout_prob", "id2label", "init_std", "initializer_factor",
    "initializer_range", "is_decoder", "keys_to_ignore_at_inference", "label2id", "length_penalty", "max_length",
    "max_new_tokens", "max_seq_len", "max_seq_length", "max_sequence_length", "min_length", "model_max_length",
    "moe_intermediate_size", "n_ctx", "name_or_path", "no_repeat_ngram_size", "norm_topk_prob", "num_beam_groups",
    "num_beams", "num_experts_per_tok", "num_labels", "num_nextn_predict_layers", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_router_logits", "output_scores", "pad_token_id", "prefix",
    "pretraining_tp", "problem_type", "remove_invalid_values", "repetition_penalty", "resid_pdrop",
    "residual_dropout", "return_dict", "return_dict_in_generate", "router_aux_loss_coef", "router_jitter_noise",
    "sep_token_id", "seq_length", "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss",
    "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers.js_config", "transformers_version", "typical_p", "unk_token_id", "unsloth_fixed",
    "unsloth_version", "use_bfloat16", "use_cache", "use_flash_attention", "use_flash_attention_2",
    "use_flash_attn", "vocab_file",
})
# fmt: on
# Keys of the family's relatives that change the computation -> the values with which they do not. Null always is one.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    # attention
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    "bidirectional": (False,),
    "attn_logit_softcapping": (),
    "attention_logit_softcapping": (),
    "attn_logit_softcap": (),
    "query_pre_attn_scalar": (),
    "attention_multiplier": (),
    "attention_scale": (),
    "attn_scale": (),
    "attn_temperature_tuning": (False, 0),
    "attention_chunk_size": (),
    "attention_sinks": (False,),
    "use_attention_sinks": (False,),
    "clip_qkv": (),
    "use_qk_norm": (False,),
    "qk_norm": (False,),
    "qk_layernorm": (False,),
    "use_qk_layernorm": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "num_kv_shared_layers": (0,),
    "pruned_heads": ({}, []),
    # positions
    "alibi": (False,),
    "use_alibi": (False,),
    "position_embedding_type": ("rope", "rotary"),
    "rope_interleave": (False,),
    "rope_interleaved": (False,),
    "rope_local_base_freq": (),
    "rope_pct": (1,),
    "rope_ratio": (1,),
    "rotary_pct": (1,),
    "rotary_emb_base": (),
    "rotary_emb_interleaved": (False,),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (0,),
    # scales and norms
    "embedding_multiplier": (1,),
    "embedding_scale": (1,),
    "scale_emb": (1,),
    "scale_depth": (),
    "dim_model_base": (),
    "residual_multiplier": (1,),
    "residual_scale": (1,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "lm_head_multiplier": (1,),
    "final_logit_softcapping": (),
    "logit_softcap": (),
    "use_mup": (False,),
    "mup_enabled": (False,),
    "norm_type": ("rmsnorm", "rms_norm", "RMSNorm"),
    "rms_norm_add_unit_offset": (False,),
    "zero_centered_gamma": (False,),
    # structure
    "parallel_attn": (False,),
    "parallel_residual": (False,),
    "use_parallel_residual": (False,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_routed_experts": (0,),
    "swiglu_limit": (),
    "per_layer_config": ({},),
}
_SKIPS = ("no_rope_layers", "no_rope_layer_interval")
_QUANTISED = ("quantization_config", "quantization", "compression_config", "quant_config")
_ROPE_KEYS = frozenset(
    ("rope_theta", "rope_type", "type", "factor", "low_freq_factor", "high_freq_factor", "partial_rotary_factor",
     "attention_factor", "short_factor", "long_factor", _ORIGINAL)
)  # fmt: skip


def read_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a ModelConfig. Raises CheckpointError, which names the key that is missing or not supported."""
    row = _architecture(fields)
    _check_keys(fields, row)
    heads, hidden = _whole(fields, "num_attention_heads"), _whole(fields, "hidden_size")
    layers, positions = _whole(fields, "num_hidden_layers"), _whole(fields, _POSITIONS, row.default(_POSITIONS))
    rope = _rope_fields(fields, row)
    window, layer_types = _windows(fields, row, layers, positions)
    return {
        "hidden_size": hidden,
        "intermediate_size": _whole(fields, "intermediate_size"),
        "intermediate_sizes": _widths(fields, layers),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(
            fields, "num_key_value_heads", _absent(fields, row, "num_key_value_heads", heads)
        ),
        "head_dim": _head_dim(fields, row, hidden, heads),
        "vocab_size": _whole(fields, "vocab_size"),
        _POSITIONS: positions,
        "hidden_act": _activation(fields, row),
        "hidden_act_param": _number(fields, "hidden_act_param") if fields.get(row.activation_key) == "fatrelu" else 0.0,
        "rms_norm_eps": _number(fields, "rms_norm_eps", row.default("rms_norm_eps")),
        "rope_theta": _number(rope, "rope_theta", row.default("rope_theta")),
        "rope_scaling": _rope_scaling(rope, positions),
        "rope_local_theta": _number(rope, "local_theta", row.default("rope_local_base_freq"))
        if row.local_rope
        else None,
        "rope_layers": _rope_layers(fields, layers) if row.skips_rope else (),
        "partial_rotary_factor": _number(rope, "partial_rotary_factor", 1.0),
        "multipliers": _multipliers(fields, row),
        "tie_word_embeddings": _flag(fields, "tie_word_embeddings", row.default("tie_word_embeddings")),
        "attention_bias": row.qkv_bias is None and _flag(fields, "attention_bias"),
        "mlp_bias": row.mlp_bias is None and _flag(fields, "mlp_bias"),
        "bos_token_id": next(iter(_special_tokens(fields, row, "bos_token_id")), None),
        "eos_token_ids": _special_tokens(fields, row, "eos_token_id"),
        "model_type": row.model_type,
        "sliding_window": window,
        "layer_types": layer_types,
        "rotates_down": _flag(fields, "rotates_down"),
    }


def token_ids(value: Any) -> tuple[int, ...]:
    """Hugging Face's "one id, several ids or none" as a tuple."""
    if value is None:
        return ()
    values = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise CheckpointError(f"token ids are {value!r}, expected whole numbers")
    return tuple(v for v in dict.fromkeys(values) if v >= 0)  # -1 stands for "none" in some files


def unsupported(model_type: Any) -> CheckpointError:
    """The error for a model type that has no row."""
    return CheckpointError(f"model type {model_type!r} is not supported (only {', '.join(ARCHITECTURES)})")


def same_windows(
    window: int | None, layer_types: tuple[str, ...], positions: int
) -> tuple[int | None, tuple[str, ...]]:
    """One spelling of what hides the same positions: no window where none hides any, no list where layers are equal."""
    if window is None or window >= positions or (layer_types and SLIDING not in layer_types):
        return None, ()
    return window, layer_types if FULL in layer_types else ()


def _architecture(fields: Mapping[str, Any]) -> Architecture:
    """The row of model_type and architectures, which must agree."""
    classes = fields.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise CheckpointError(f"architectures is {classes!r}, expected a list of names")
    rows = [by_hf_class(name) for name in classes]
    if None in rows:
        known = ", ".join(row.hf_class for row in ARCHITECTURES.values())
        raise CheckpointError(f"architecture {classes[rows.index(None)]!r} is not supported (only {known})")
    model_type = fields.get("model_type") or (rows[0].model_type if rows and rows[0] else None)
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise unsupported(model_type)
    other = next((row for row in rows if row and row.model_type != model_type), None)
    if other:
        raise CheckpointError(f"model_type is {model_type!r}, but architectures says {other.hf_class!r}")
    return ARCHITECTURES[model_type]


def _check_keys(fields: Mapping[str, Any], row: Architecture) -> None:
    for name in _QUANTISED:
        if fields.get(name):
            raise CheckpointError(f"the weights are already quantised ({_quantiser(name, fields[name])}); start from "
                                  "f32, f16 or bf16 weights")  # fmt: skip
    applied = {*row.multipliers, *(_SKIPS if row.skips_rope else ()), *(("rope_local_base_freq",) * row.local_rope)}
    for name, neutral in _NEUTRAL.items():
        value = None if name in applied else fields.get(name)
        if value is not None and not any(value == other for other in neutral):
            only = f" (only {', '.join(map(repr, neutral))})" if neutral else ""
            raise CheckpointError(f"{name} is {value!r}, which is not supported{only}")
    for name, fixed in (("attention_bias", row.qkv_bias), ("mlp_bias", row.mlp_bias)):
        if fixed is False and _flag(fields, name):
            raise CheckpointError(f"{name} is true: biases are not part of the {row.model_type} architecture")
    known = _APPLIED | applied | _HARMLESS | _NEUTRAL.keys() | frozenset(_QUANTISED)
    unknown = sorted(name for name, value in fields.items() if name not in known and value not in (None, False))
    if unknown:
        _log.warning("config.json has keys that are unknown here and ignored: %s", ", ".join(map(repr, unknown)))


def _quantiser(key: str, value: Any) -> str:
    if key == "quantization":  # mlx-lm's
        return "mlx: quantization is in config.json"
    return str(value.get("quant_method", key)) if isinstance(value, Mapping) else str(value)


def _absent(fields: Mapping[str, Any], row: Architecture, name: str, null: Any) -> Any:
    """The value of a field that is absent (the architecture's default, else that of null) or null."""
    default = row.default(name)
    return null if name in fields or default is None else default


def _head_dim(fields: Mapping[str, Any], row: Architecture, hidden: int, heads: int) -> int:
    default = _absent(fields, row, "head_dim", None)
    if fields.get("head_dim") is None and default is None and heads > 0 and hidden % heads:
        raise CheckpointError(f"hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads})")
    return _whole(fields, "head_dim", default or (hidden // heads if heads > 0 else 0))


def _activation(fields: Mapping[str, Any], row: Architecture) -> str:
    name = fields.get(row.activation_key, row.default(row.activation_key))
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise CheckpointError(f"{row.activation_key} {name!r} is not supported (only {', '.join(ACTIVATIONS)})")
    return ACTIVATIONS[name]


def _special_tokens(fields: Mapping[str, Any], row: Architecture, name: str) -> tuple[int, ...]:
    if name in fields:
        return token_ids(fields[name])
    default, vocabulary = row.default(name), _whole(fields, "vocab_size")
    return (default,) if default is not None and default < vocabulary else ()


def _windows(fields: Mapping[str, Any], row: Architecture, layers: int, positions: int) -> Windows:
    """sliding_window, and layer_types where layers differ, as `same_windows` has them."""
    given = _layer_types(fields, layers)
    absent = row.default("sliding_window")
    value = fields.get("sliding_window", absent)
    window = None if value is None else _whole({"sliding_window": value}, "sliding_window")
    if window is not None and window <= 0:
        raise CheckpointError(f"sliding_window is {window}, expected a positive whole number or null")
    types = given
    if row.window is WindowRule.BY_FLAG:
        first = _whole(fields, "max_window_layers", row.default("max_window_layers"))
        window = window if _flag(fields, "use_sliding_window") and (given or first < layers) else None
        if window is not None and 0 < first < layers:
            if layers > _MOST_LAYERS:
                raise CheckpointError(f"num_hidden_layers is {layers}, expected at most {_MOST_LAYERS}")
            types = given or (FULL,) * first + (SLIDING,) * (layers - first)
    elif row.window is WindowRule.BY_LAYER:
        types = given or pattern_of(row, layers, _pattern(fields, row))
    elif (
        row.window is WindowRule.NONE
        and fields.get("use_sliding_window") is not False
        and same_windows(window, types, positions)[0] is not None
    ):
        raise CheckpointError(f"sliding_window ({window} of {positions} positions) is not part of the "
                              f"{row.model_type} architecture")  # fmt: skip
    if window is None and SLIDING in given:
        raise CheckpointError(f"layer_types has {SLIDING!r}, but there is no sliding_window")
    if row.local_rope:  # types say which base of RoPE a layer has, too
        return same_windows(window, types, positions)[0], types
    result = same_windows(window, () if row.window is WindowRule.EVERY_LAYER else types, positions)
    if row.window is WindowRule.EVERY_LAYER and result[0] is not None:
        # transformers does not read them here: what runs would not be what they say.
        conflicts = {
            "layer_types": FULL in given,
            "use_sliding_window": fields.get("use_sliding_window") is False,
            "max_window_layers": fields.get("max_window_layers") is not None,
        }
        for name in (name for name, conflict in conflicts.items() if conflict):
            raise CheckpointError(
                f"{name} is {fields[name]!r}, but the {row.model_type} architecture has a sliding_window in every layer"
            )
    return result


def pattern_of(row: Architecture, layers: int, pattern: int | None = None) -> tuple[str, ...]:
    """Kinds of layers where a config does not list them: every n-th, of the row or of `pattern`, sees everything."""
    if layers > _MOST_LAYERS:
        raise CheckpointError(f"num_hidden_layers is {layers}, expected at most {_MOST_LAYERS}")
    every = pattern or row.window_pattern
    return tuple(SLIDING if (layer + 1) % every else FULL for layer in range(layers))


def _pattern(fields: Mapping[str, Any], row: Architecture) -> int:
    """Every how many layers one sees everything. transformers writes the name with `_` and does not read it."""
    every = _whole(fields, "sliding_window_pattern", row.window_pattern)
    if every < 1:
        raise CheckpointError(f"sliding_window_pattern is {every}, expected a positive whole number")
    if _whole(fields, "_sliding_window_pattern", every) != every:
        raise CheckpointError(
            f"_sliding_window_pattern is {fields['_sliding_window_pattern']}, but without layer_types transformers "
            f"takes {every}; say it as sliding_window_pattern or as layer_types"
        )
    return every


def _multipliers(fields: Mapping[str, Any], row: Architecture) -> tuple[tuple[str, float | None], ...]:
    """Those of the row; null stays null where it stands in the file, for `scales.check` to say what it thinks."""
    return tuple(
        (name, (None if fields[name] is None else _number(fields, name)) if name in fields else default)
        for name, default in row.multipliers.items()
    )


def _rope_layers(fields: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """no_rope_layers, which is 1 for layers *with* RoPE; without it every no_rope_layer_interval-th has none."""
    given = fields.get("no_rope_layers")
    if given is not None:
        if not isinstance(given, list) or len(given) != layers or not all(type(layer) is int for layer in given):
            raise CheckpointError(f"no_rope_layers is {given!r:.80}, expected a list of num_hidden_layers = {layers}")
        return tuple(given)
    interval = _whole(fields, "no_rope_layer_interval", 4)
    if interval < 1 or layers > _MOST_LAYERS:
        raise CheckpointError(f"no_rope_layer_interval is {interval} of {layers} layers, expected a positive number")
    return tuple(int((layer + 1) % interval != 0) for layer in range(layers))


def _widths(fields: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    given = fields.get("intermediate_sizes")
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) != layers:
        raise CheckpointError(f"intermediate_sizes is {given!r:.80}, expected a list of num_hidden_layers = {layers}")
    return tuple(given)


def _layer_types(fields: Mapping[str, Any], layers: int) -> tuple[str, ...]:
    given = fields.get("layer_types")
    if given is None:
        return ()
    if not isinstance(given, list) or any(kind not in (FULL, SLIDING) for kind in given):
        raise CheckpointError(f"layer_types is {given!r}, expected a list of {FULL!r} and {SLIDING!r}")
    if len(given) != layers:
        raise CheckpointError(f"layer_types has {len(given)} entries, expected num_hidden_layers = {layers}")
    return tuple(given)


def _rope_fields(fields: Mapping[str, Any], row: Architecture) -> dict[str, Any]:
    """rope_theta and scaling in one dictionary: transformers 4 spells it `rope_scaling`, 5 `rope_parameters`. The base
    of layers with a window comes under `local_theta`.
    """
    rope: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        part = fields.get(name) or {}
        if not isinstance(part, Mapping):
            raise CheckpointError(f"{name} is {part!r}, expected an object")
        if row.local_rope and (FULL in part or SLIDING in part):
            part = _by_kind(name, part, rope)
        for key, value in part.items():
            if key not in _ROPE_KEYS and value is not None:
                raise CheckpointError(f"{name}.{key} is not supported (only {', '.join(sorted(_ROPE_KEYS))})")
            if rope.get(key, value) != value:
                raise CheckpointError(f"rope_scaling and rope_parameters disagree on {key}: {rope[key]!r}, {value!r}")
            rope[key] = value
    for name in ("rope_theta", "partial_rotary_factor"):
        if rope.get(name) is None and fields.get(name) is not None:
            rope[name] = fields[name]
    if row.local_rope and fields.get("rope_local_base_freq") is not None:
        rope["local_theta"] = fields["rope_local_base_freq"]
    original = fields.get(_ORIGINAL, row.default(_ORIGINAL))
    if original is not None:  # goes before the one inside, as in transformers
        rope[_ORIGINAL] = original
    return rope


def _by_kind(name: str, part: Mapping[str, Any], rope: dict[str, Any]) -> Mapping[str, Any]:
    """transformers 5's parameters per kind of layer: those of full attention; the base of the others goes to `rope`."""
    full, local = part.get(FULL) or {}, part.get(SLIDING) or {}
    if not isinstance(full, Mapping) or not isinstance(local, Mapping) or set(part) - {FULL, SLIDING}:
        raise CheckpointError(f"{name} is {part!r:.120}, expected an object for {FULL!r} and one for {SLIDING!r}")
    other = {key: value for key, value in local.items() if key not in ("rope_theta", "rope_type") and value is not None}
    if other or local.get("rope_type", "default") != "default":
        raise CheckpointError(f"{name}.{SLIDING} is {local!r:.120}, which is not supported (only rope_theta)")
    if local.get("rope_theta") is not None:
        rope["local_theta"] = local["rope_theta"]
    return full


def _rope_scaling(rope: Mapping[str, Any], positions: int) -> RopeScaling | None:
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type in (None, "default"):
        return None
    if rope_type == "linear":
        return RopeScaling("linear", factor=_number(rope, "factor"))
    if rope_type == "llama3":
        return RopeScaling(
            "llama3",
            factor=_number(rope, "factor"),
            low_freq_factor=_number(rope, "low_freq_factor"),
            high_freq_factor=_number(rope, "high_freq_factor"),
            original_max_position_embeddings=_whole(rope, _ORIGINAL, positions),
        )
    if rope_type in ("longrope", "su"):  # its first name
        return _longrope(rope, positions)
    raise CheckpointError(f"RoPE type {rope_type!r} is not supported (only linear, llama3 and longrope)")


def _longrope(rope: Mapping[str, Any], positions: int) -> RopeScaling:
    """Two tables and the factor of cosines and sines, by transformers' rule where the file has none."""
    tables = {name: rope.get(name) for name in ("short_factor", "long_factor")}
    for name, table in tables.items():
        if not isinstance(table, list) or not table:
            raise CheckpointError(f"RoPE type 'longrope' needs a list of numbers {name}, got {table!r:.80}")
    original = _whole(rope, _ORIGINAL, positions)
    if original < 2:
        raise CheckpointError(f"{_ORIGINAL} is {original}, expected more than 1 position")
    factor = _number(rope, "factor", positions / original)
    length = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    short, long = (tuple(_number({name: f}, name) for f in table or ()) for name, table in tables.items())
    return RopeScaling(
        "longrope",
        factor=_number(rope, "factor", 1.0),
        original_max_position_embeddings=original,
        frequency_factors=short,
        long_factors=long,
        attention_factor=_number(rope, "attention_factor", length),
    )


def _whole(fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = fields.get(name)
    if value is None:
        if default is None:
            raise CheckpointError(f"{name} is missing")
        return default
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole:
        raise CheckpointError(f"{name} is {value!r}, expected a whole number")
    return int(value)


def _number(fields: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = fields.get(name)
    if value is None:
        if default is None:
            raise CheckpointError(f"{name} is missing")
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CheckpointError(f"{name} is {value!r}, expected a number")
    try:
        return float(value)
    except OverflowError as error:
        raise CheckpointError(
            f"{name} is a whole number of {len(str(value))} digits, expected one below 1e308"
        ) from error


def _flag(fields: Mapping[str, Any], name: str, default: bool | None = None) -> bool:
    value = fields.get(name, default)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{name} is {value!r}, expected true or false")
    return bool(value)
