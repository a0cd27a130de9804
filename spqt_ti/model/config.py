"""What a Llama-family model is made of, in Hugging Face's own field names.

Knows nothing of files beyond the dictionary in a `config.json`. Whatever this package cannot run is refused here, with
a `CheckpointError` that names the field, so that no model is ever run subtly wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import CheckpointError

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
ROPE_TYPES = ("linear", "llama3", "longrope")
# transformers' defaults for fields that an old config.json leaves out.
_DEFAULT_ROPE_THETA = 10000.0
_MISTRAL_SLIDING_WINDOW = 4096
_POSITIONS = "max_position_embeddings"


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies differ from `theta ** (-2 i / head_dim)`.

    `linear` uses `factor`; `llama3` uses `factor`, both frequency factors and the original context. `longrope` divides
    frequency i by `frequency_factors[i]`: it is how a GGUF file's `rope_freqs.weight` travels when it is not Llama-3's
    formula (one list of factors, no attention factor: the part of LongRoPE that is a plain table).
    """

    rope_type: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    frequency_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise CheckpointError(f"RoPE type {self.rope_type!r} is not supported (only {', '.join(ROPE_TYPES)})")
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise CheckpointError(f"rope_scaling.factor is {self.factor}, expected a positive number")
        if self.rope_type == "llama3":
            self._check_llama3()
        if not all(math.isfinite(f) and f > 0 for f in self.frequency_factors):
            raise CheckpointError("rope_scaling has frequency factors that are not positive numbers")

    def _check_llama3(self) -> None:
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise CheckpointError(
                f"rope_scaling needs 0 < low_freq_factor < high_freq_factor, got {self.low_freq_factor} "
                f"and {self.high_freq_factor}"
            )
        if self.original_max_position_embeddings <= 0:
            raise CheckpointError(
                "rope_scaling.original_max_position_embeddings is "
                f"{self.original_max_position_embeddings}, expected a positive number"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields of this type as Hugging Face spells them."""
        if self.rope_type == "linear":
            return {"rope_type": "linear", "factor": self.factor}
        if self.rope_type == "llama3":
            return {
                "rope_type": "llama3",
                "factor": self.factor,
                "low_freq_factor": self.low_freq_factor,
                "high_freq_factor": self.high_freq_factor,
                "original_max_position_embeddings": self.original_max_position_embeddings,
            }
        factors = list(self.frequency_factors)
        return {
            "rope_type": "longrope",
            "factor": self.factor,
            "attention_factor": 1.0,
            "short_factor": factors,
            "long_factor": list(factors),
            "original_max_position_embeddings": self.original_max_position_embeddings,
        }


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a decoder of the Llama family. Validated on construction (CheckpointError)."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = _DEFAULT_ROPE_THETA
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    model_type: str = "llama"

    def __post_init__(self) -> None:
        if self.model_type not in ARCHITECTURES:
            raise CheckpointError(_unsupported(self.model_type))
        self._check_sizes()
        self._check_heads()
        self._check_numbers()
        self._check_token_ids()

    def _check_sizes(self) -> None:
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise CheckpointError(f"{name} is {value!r}, expected a positive whole number")

    def _check_heads(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise CheckpointError(f"head_dim is {self.head_dim}, expected an even number (RoPE turns pairs)")
        scaling = self.rope_scaling
        if scaling and scaling.rope_type == "longrope" and len(scaling.frequency_factors) != self.head_dim // 2:
            raise CheckpointError(
                f"RoPE has {len(scaling.frequency_factors)} frequency factors, "
                f"expected head_dim/2 = {self.head_dim // 2}"
            )

    def _check_numbers(self) -> None:
        if not (math.isfinite(self.rms_norm_eps) and self.rms_norm_eps > 0):
            raise CheckpointError(f"rms_norm_eps is {self.rms_norm_eps}, expected a positive number")
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 0):
            raise CheckpointError(f"rope_theta is {self.rope_theta}, expected a positive number")

    def _check_token_ids(self) -> None:
        for name, token in [("bos_token_id", self.bos_token_id), *(("eos_token_id", t) for t in self.eos_token_ids)]:
            if token is not None and not 0 <= token < self.vocab_size:
                raise CheckpointError(
                    f"{name} is {token}, expected one of the {self.vocab_size} tokens of the vocabulary"
                )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelConfig:
        """Read the content of a `config.json`; CheckpointError names the field that is missing or not supported."""
        model_type = _model_type(fields)
        _refuse_unsupported(fields, model_type)
        heads = _whole(fields, "num_attention_heads")
        hidden = _whole(fields, "hidden_size")
        head_dim = _whole(fields, "head_dim", hidden // heads if heads > 0 else 0)
        if fields.get("head_dim") is None and heads > 0 and hidden % heads:
            raise CheckpointError(f"hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads})")
        rope = _rope_fields(fields)
        positions = _whole(fields, _POSITIONS)
        return cls(
            hidden_size=hidden,
            intermediate_size=_whole(fields, "intermediate_size"),
            num_hidden_layers=_whole(fields, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=_whole(fields, "num_key_value_heads", heads),
            head_dim=head_dim,
            vocab_size=_whole(fields, "vocab_size"),
            max_position_embeddings=positions,
            rms_norm_eps=_number(fields, "rms_norm_eps", 1e-6),
            rope_theta=_number(rope, "rope_theta", _DEFAULT_ROPE_THETA),
            rope_scaling=_rope_scaling(rope, positions),
            tie_word_embeddings=_flag(fields, "tie_word_embeddings"),
            attention_bias=_flag(fields, "attention_bias"),
            mlp_bias=_flag(fields, "mlp_bias"),
            bos_token_id=_first_token(fields.get("bos_token_id")),
            eos_token_ids=token_ids(fields.get("eos_token_id")),
            model_type=model_type,
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` that `from_dict` and transformers (4 and 5) both read."""
        eos = list(self.eos_token_ids)
        fields: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling.to_dict() if self.rope_scaling else None,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        }
        if self.model_type == "mistral":
            fields["sliding_window"] = None  # left out, it would mean 4096 to transformers
        return fields

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face name -> shape of every tensor that the model needs, in the order in which it is used."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_hidden_layers):
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in self._block_shapes().items()}
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def _block_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, queries, keys = self.hidden_size, self.num_attention_heads * self.head_dim, self.kv_size
        matrices = {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (self.intermediate_size, hidden),
            "mlp.up_proj": (self.intermediate_size, hidden),
            "mlp.down_proj": (hidden, self.intermediate_size),
        }
        shapes: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (hidden,)}
        for name, shape in matrices.items():
            if name == "mlp.gate_proj":
                shapes["post_attention_layernorm.weight"] = (hidden,)
            shapes[f"{name}.weight"] = shape
            if self.attention_bias if name.startswith("self_attn") else self.mlp_bias:
                shapes[f"{name}.bias"] = shape[:1]
        return shapes

    @property
    def kv_size(self) -> int:
        """Values of one token in the key (or value) cache of one layer."""
        return self.num_key_value_heads * self.head_dim


LlamaConfig = ModelConfig  # its former name, until everything that is being written uses the new one


def rope_inverse_frequencies(config: ModelConfig) -> npt.NDArray[np.float64]:
    """f64 [head_dim/2]: the angle by which pair i (elements i, i + head_dim/2) turns from one position to the next."""
    plain = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    if scaling.rope_type == "linear":
        return plain / scaling.factor
    if scaling.rope_type == "longrope":
        return plain / np.asarray(scaling.frequency_factors, dtype=np.float64)
    return plain / llama3_frequency_factors(plain, scaling)


def llama3_frequency_factors(plain: npt.NDArray[np.float64], scaling: RopeScaling) -> npt.NDArray[np.float64]:
    """f64 [head_dim/2]: what Llama 3.1 divides the unscaled frequencies `plain` by.

    1 for waves much shorter than the original context, `factor` for those longer than it, a blend in between.
    """
    turns = scaling.original_max_position_embeddings * plain / (2 * np.pi)  # full turns within the original context
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return 1.0 / ((1.0 - blend) / scaling.factor + blend)


def token_ids(value: Any) -> tuple[int, ...]:
    """Hugging Face's "one id, several ids or none" as a tuple."""
    if value is None:
        return ()
    values = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise CheckpointError(f"token ids are {value!r}, expected whole numbers")
    return tuple(v for v in dict.fromkeys(values) if v >= 0)  # -1 stands for "none" in some files


def _first_token(value: Any) -> int | None:
    ids = token_ids(value)
    return ids[0] if ids else None


def _unsupported(model_type: Any) -> str:
    return f"model type {model_type!r} is not supported (only llama, and mistral without sliding window)"


def _model_type(fields: Mapping[str, Any]) -> str:
    """`llama` or `mistral`, from model_type and architectures, which must agree."""
    architectures = fields.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise CheckpointError(f"architectures is {architectures!r}, expected a list of names")
    by_architecture = {architecture: model_type for model_type, architecture in ARCHITECTURES.items()}
    unknown = [a for a in architectures if a not in by_architecture]
    if unknown:
        raise CheckpointError(f"architecture {unknown[0]!r} is not supported (only {', '.join(by_architecture)})")
    model_type = fields.get("model_type") or (by_architecture[architectures[0]] if architectures else None)
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise CheckpointError(_unsupported(model_type))
    return model_type


def _refuse_unsupported(fields: Mapping[str, Any], model_type: str) -> None:
    activation = fields.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise CheckpointError(f"hidden_act {activation!r} is not supported (only silu)")
    window = fields.get("sliding_window", _MISTRAL_SLIDING_WINDOW if model_type == "mistral" else None)
    # A window as long as the context never hides anything.
    if window is not None and _whole({"sliding_window": window}, "sliding_window") < _whole(fields, _POSITIONS):
        raise CheckpointError(f"sliding_window ({window} of {fields[_POSITIONS]} positions) is not supported")
    quantised = fields.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, Mapping) else quantised
        raise CheckpointError(f"the weights are already quantised ({method}); start from f32, f16 or bf16 weights")
    if model_type == "mistral" and (fields.get("attention_bias") or fields.get("mlp_bias")):
        raise CheckpointError("biases are not part of the mistral architecture")


def _rope_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """rope_theta and scaling in one dictionary: transformers 4 spells it `rope_scaling`, 5 `rope_parameters`."""
    rope: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        part = fields.get(name) or {}
        if not isinstance(part, Mapping):
            raise CheckpointError(f"{name} is {part!r}, expected an object")
        rope |= part
    for name in ("rope_theta", "partial_rotary_factor"):
        if rope.get(name) is None and fields.get(name) is not None:
            rope[name] = fields[name]
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError(f"partial_rotary_factor {rope['partial_rotary_factor']} is not supported (only 1)")
    return rope


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
            original_max_position_embeddings=_whole(rope, "original_max_position_embeddings", positions),
        )
    if rope_type == "longrope":
        return _one_table(rope, positions)
    raise CheckpointError(f"RoPE type {rope_type!r} is not supported (only linear and llama3)")


def _one_table(rope: Mapping[str, Any], positions: int) -> RopeScaling:
    """LongRoPE whose two tables are the same and that leaves attention alone: what `RopeScaling.to_dict` writes."""
    short, long = rope.get("short_factor"), rope.get("long_factor")
    numbers = isinstance(short, list) and all(isinstance(f, (int, float)) for f in short)
    if not numbers or short != long or rope.get("attention_factor") != 1.0:
        raise CheckpointError("RoPE type 'longrope' is not supported (only linear and llama3)")
    return RopeScaling(
        "longrope",
        factor=_number(rope, "factor", 1.0),
        original_max_position_embeddings=_whole(rope, "original_max_position_embeddings", positions),
        frequency_factors=tuple(float(f) for f in rope["short_factor"]),
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
    return float(value)


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{name} is {value!r}, expected true or false")
    return bool(value)
