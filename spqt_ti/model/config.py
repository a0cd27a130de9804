"""What a model of the family is made of, in Hugging Face's own field names.

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

from spqt_ti.errors import CheckpointError, QuantizationError
from spqt_ti.model import scales
from spqt_ti.model.architectures import ARCHITECTURES, Architecture, NormRule, WindowRule
from spqt_ti.model.config_json import (
    ACTIVATIONS,
    FULL,
    SLIDING,
    read_fields,
    same_windows,
    unsupported,
)
from spqt_ti.model.hadamard import ONLINE_RUN, Transform
from spqt_ti.model.rope import RopeScaling, RopeTable, inverse_frequencies
from spqt_ti.model.scales import Scales

# Projection, or stack of projections, within a layer -> what says whether it has a bias.
_BIASES = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj"), "qkv_bias"),
    "o_proj": "o_bias",
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj", "down_proj"), "mlp_bias"),
}

# What a norm of a layer is for -> its name in Hugging Face's files, for each rule.
_NORMS = {
    NormRule.BEFORE: {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
    NormRule.AFTER: {
        "after_attention_norm": "post_attention_layernorm",
        "after_ffn_norm": "post_feedforward_layernorm",
    },
    NormRule.BOTH: {
        "attention_norm": "input_layernorm",
        "after_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "after_ffn_norm": "post_feedforward_layernorm",
    },
}


@dataclass(frozen=True)
class NormTensor:
    """Weights of an RMSNorm within a layer: what it is for, its Hugging Face name after the layer's, its values."""

    role: str  # attention_norm, ffn_norm, q_norm, k_norm, after_attention_norm or after_ffn_norm
    tensor: str
    size: int


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a decoder of the family. Validated on construction (CheckpointError).

    `sliding_window` is None where no layer has one. `layer_types` is empty where all layers are alike, else one of
    "full_attention" and "sliding_attention" per layer; both come in the one spelling of `same_windows`. `hidden_act` is
    a value of ACTIVATIONS; `hidden_act_param` is the threshold of fatrelu, 0 for the others.

    `multipliers`: name and number of each of the row's, sorted. `rope_layers`: 1 for a layer with RoPE, else 0; empty
    where all have it. `rope_local_theta`: of layers with a window, where the architecture has one. `rotates_down`: the
    input of down is turned by `down_transform` when it is computed (see convert/rotate.py).
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    model_type: str = "llama"
    hidden_act: str = "silu"
    hidden_act_param: float = 0.0
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()
    intermediate_sizes: tuple[int, ...] = ()
    multipliers: tuple[tuple[str, float | None], ...] = ()
    rope_layers: tuple[int, ...] = ()
    rope_local_theta: float | None = None
    partial_rotary_factor: float = 1.0
    rotates_down: bool = False

    def __post_init__(self) -> None:
        if self.model_type not in ARCHITECTURES:
            raise unsupported(self.model_type)
        self._check_sizes()
        self._check_widths()
        self._check_rotation()
        self._check_heads()
        self._check_numbers()
        self._check_token_ids()
        self._check_windows()
        self._check_multipliers()
        self._check_rope()

    def _check_multipliers(self) -> None:
        given, row = dict(self.multipliers), self.architecture
        for name in given.keys() - row.multipliers.keys():
            raise CheckpointError(f"{name} is not part of the {self.model_type} architecture")
        numbers = {name: given.get(name, default) for name, default in row.multipliers.items()}
        scales.check(numbers)
        object.__setattr__(self, "multipliers", tuple(sorted(numbers.items())))

    def _check_rope(self) -> None:
        row, layers = self.architecture, self.rope_layers
        if layers and (len(layers) != self.num_hidden_layers or not all(layer in (0, 1) for layer in layers)):
            raise CheckpointError(
                f"no_rope_layers is {list(layers)!r:.80}, expected {self.num_hidden_layers} of 0 and 1"
            )
        if all(layers):  # one spelling of one model
            object.__setattr__(self, "rope_layers", ())
        if self.rope_layers and not row.skips_rope:
            raise CheckpointError(f"no_rope_layers is not part of the {self.model_type} architecture")
        theta = self.rope_local_theta
        if theta is None and row.local_rope:
            object.__setattr__(self, "rope_local_theta", row.default("rope_local_base_freq"))
        if theta is not None and not (row.local_rope and math.isfinite(theta) and theta > 0):
            raise CheckpointError(f"rope_local_base_freq is {theta}, expected "
                                  f"{'a positive number' if row.local_rope else 'none'}")  # fmt: skip
        if self.partial_rotary_factor != 1 and not row.partial_rope:
            raise CheckpointError(f"partial_rotary_factor {self.partial_rotary_factor} is not supported (only 1)")
        if not 0 < self.partial_rotary_factor <= 1 or self.rotary_dim < 2 or self.rotary_dim % 2:
            raise CheckpointError(
                f"partial_rotary_factor is {self.partial_rotary_factor}: {self.rotary_dim} of {self.head_dim} entries "
                "of a head, expected an even number of them (RoPE turns pairs)"
            )

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

    def _check_widths(self) -> None:
        widths = self.intermediate_sizes
        if not widths:
            return
        if len(widths) != self.num_hidden_layers:
            raise CheckpointError(f"intermediate_sizes has {len(widths)} entries, expected {self.num_hidden_layers}")
        if not all(type(width) is int and width > 0 for width in widths):
            raise CheckpointError(f"intermediate_sizes is {list(widths)!r:.80}, expected positive whole numbers")
        if max(widths) != self.intermediate_size:
            raise CheckpointError(
                f"intermediate_size is {self.intermediate_size}, expected the largest of intermediate_sizes, "
                f"{max(widths)}"
            )
        if min(widths) == max(widths):  # one spelling of one model
            object.__setattr__(self, "intermediate_sizes", ())

    def _check_rotation(self) -> None:
        try:
            for width in set(self.widths()) if self.rotates_down else ():
                Transform.of(width, ONLINE_RUN)
        except QuantizationError as error:
            raise CheckpointError(f"rotates_down: {error}") from error

    def _check_heads(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise CheckpointError(f"head_dim is {self.head_dim}, expected an even number (RoPE turns pairs)")
        scaling = self.rope_scaling
        if scaling and scaling.rope_type == "longrope" and len(scaling.frequency_factors) != self.rotary_dim // 2:
            part = "" if self.partial_rotary_factor == 1 else "partial_rotary_factor "
            raise CheckpointError(
                f"RoPE has {len(scaling.frequency_factors)} frequency factors, "
                f"expected {part}head_dim/2 = {self.rotary_dim // 2}"
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

    def _check_windows(self) -> None:
        if self.sliding_window is not None and self.sliding_window <= 0:
            raise CheckpointError(f"sliding_window is {self.sliding_window}, expected a positive number")
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise CheckpointError(f"layer_types has {len(self.layer_types)} entries, expected {self.num_hidden_layers}")
        window, types = same_windows(self.sliding_window, self.layer_types, self.max_position_embeddings)
        rule = self.architecture.window
        if self.architecture.local_rope:  # there they say more than what is hidden
            types = self.layer_types or ((SLIDING if window else FULL),) * self.num_hidden_layers
        object.__setattr__(self, "sliding_window", window)
        object.__setattr__(self, "layer_types", types)
        if (window and rule is WindowRule.NONE) or (types and rule not in (WindowRule.BY_FLAG, WindowRule.BY_LAYER)):
            raise CheckpointError(f"sliding_window ({window}, {types or 'every layer'}) is not part of the "
                                  f"{self.model_type} architecture")  # fmt: skip
        if self.hidden_act not in ACTIVATIONS.values():
            raise CheckpointError(f"hidden_act {self.hidden_act!r} is not supported (only {', '.join(ACTIVATIONS)})")
        if not (math.isfinite(self.hidden_act_param) and self.hidden_act_param >= 0):
            raise CheckpointError(f"hidden_act_param is {self.hidden_act_param}, expected a threshold of 0 or more")
        if self.hidden_act_param and self.hidden_act != "fatrelu":
            raise CheckpointError(
                f"hidden_act_param is {self.hidden_act_param}, but {self.hidden_act} has no threshold"
            )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelConfig:
        """Read the content of a `config.json`; CheckpointError names the field that is missing or not supported."""
        return cls(**read_fields(fields))

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` that `from_dict` and transformers (4 and 5) both read."""
        eos, row = list(self.eos_token_ids), self.architecture
        return {
            "architectures": [row.hf_class],
            "model_type": self.model_type,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            **({"intermediate_sizes": list(self.intermediate_sizes)} if self.intermediate_sizes else {}),
            **({"rotates_down": True} if self.rotates_down else {}),
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            row.activation_key: self.hidden_act,
            **({"hidden_act_param": self.hidden_act_param} if self.hidden_act == "fatrelu" else {}),
            "rms_norm_eps": self.rms_norm_eps,
            **self._rope_fields(),
            **scales.spelt(self.multipliers),
            "tie_word_embeddings": self.tie_word_embeddings,
            **({"attention_bias": self.attention_bias} if row.qkv_bias is None else {}),
            **({"mlp_bias": self.mlp_bias} if row.mlp_bias is None else {}),
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            **self._window_fields(),
        }

    def _rope_fields(self) -> dict[str, Any]:
        row, scaling = self.architecture, self.rope_scaling
        fields: dict[str, Any] = {
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling.to_dict() if scaling else None,
        }
        if row.partial_rope:
            fields["partial_rotary_factor"] = self.partial_rotary_factor
        if row.default("original_max_position_embeddings") and scaling:
            fields["original_max_position_embeddings"] = scaling.original_max_position_embeddings
        if row.local_rope:
            fields["rope_local_base_freq"] = self.rope_local_theta
        if row.skips_rope:
            fields["no_rope_layers"] = list(self.rope_layers) or [1] * self.num_hidden_layers
        return fields

    def _window_fields(self) -> dict[str, Any]:
        """Explicit, because left out they mean a window of 4096 to transformers."""
        if self.architecture.window is WindowRule.NONE:
            return {}
        if self.architecture.window is WindowRule.EVERY_LAYER:
            return {"sliding_window": self.sliding_window}
        kinds = list(self.layer_types) or [SLIDING if self.sliding_window else FULL] * self.num_hidden_layers
        if self.architecture.window is WindowRule.BY_LAYER:  # transformers wants a number
            return {"sliding_window": self.sliding_window or self.max_position_embeddings, "layer_types": kinds}
        first = kinds.index(SLIDING) if SLIDING in kinds else self.num_hidden_layers
        return {
            "use_sliding_window": self.sliding_window is not None,
            "sliding_window": self.sliding_window,
            "max_window_layers": first,  # what transformers before layer_types reads
            "layer_types": kinds,
        }

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face name -> shape of every tensor that the model needs, in the order in which it is used."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_hidden_layers):
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in self._layer_shapes(layer).items()}
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def widths(self) -> tuple[int, ...]:
        """Per layer the channels of its feed-forward network."""
        return self.intermediate_sizes or (self.intermediate_size,) * self.num_hidden_layers

    def down_transform(self, layer: int) -> Transform | None:
        """What turns the input of a layer's down when it is computed; None where nothing does."""
        return Transform.of(self.widths()[layer], ONLINE_RUN) if self.rotates_down else None

    def _layer_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        hidden, queries, keys = self.hidden_size, self.num_attention_heads * self.head_dim, self.kv_size
        width = self.intermediate_sizes[layer] if self.intermediate_sizes else self.intermediate_size
        matrices = {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (width, hidden),
            "mlp.up_proj": (width, hidden),
            "mlp.down_proj": (hidden, width),
        }
        norms = {norm.role: norm for norm in self.norms()}
        before = {"self_attn.q_proj": ("attention_norm",), "self_attn.o_proj": ("q_norm", "k_norm"),
                  "mlp.gate_proj": ("after_attention_norm", "ffn_norm")}  # fmt: skip
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in matrices.items():
            for role in before.get(name, ()):
                if role in norms:
                    shapes[norms[role].tensor] = (norms[role].size,)
            shapes[f"{name}.weight"] = shape
            if self.has_bias(name):
                shapes[f"{name}.bias"] = shape[:1]
        if "after_ffn_norm" in norms:
            shapes[norms["after_ffn_norm"].tensor] = (norms["after_ffn_norm"].size,)
        return shapes

    def norms(self) -> tuple[NormTensor, ...]:
        """The norms of a layer: the one list of its small tensors besides biases."""
        row = self.architecture
        layer = tuple(NormTensor(role, f"{name}.weight", self.hidden_size) for role, name in _NORMS[row.norms].items())
        if not row.qk_norm:
            return layer
        heads = {"q": self.num_attention_heads, "k": self.num_key_value_heads}
        return (
            *layer,
            *(
                NormTensor(
                    f"{x}_norm", f"self_attn.{x}_norm.weight", self.head_dim * (count if row.qk_norm_whole else 1)
                )
                for x, count in heads.items()
            ),
        )

    def has_bias(self, module: str) -> bool:
        """Whether a projection ("self_attn.q_proj") or a stack of them ("mlp.gate_up_proj") has a bias."""
        kind = _BIASES[module.rpartition(".")[2]]
        fixed: bool | None = getattr(self.architecture, kind)
        if fixed is not None:
            return fixed
        return self.mlp_bias if kind == "mlp_bias" else self.attention_bias

    def windows(self) -> tuple[int, ...]:
        """Per layer how many positions a token attends to at most, itself included."""
        window, whole = self.sliding_window, self.max_position_embeddings
        if window is None:
            return (whole,) * self.num_hidden_layers
        kinds = self.layer_types or (SLIDING,) * self.num_hidden_layers
        return tuple(window if kind == SLIDING else whole for kind in kinds)

    @property
    def scales(self) -> Scales:
        """What its multipliers come to."""
        return Scales.of(
            dict(self.multipliers), self.hidden_size, self.num_hidden_layers, self.head_dim,
            by_width=self.architecture.scaled_embedding,
        )  # fmt: skip

    @property
    def rotary_dim(self) -> int:
        """Entries of a head that RoPE turns, the first ones."""
        return int(self.head_dim * self.partial_rotary_factor)

    def rope_tables(self, context: int) -> tuple[RopeTable, ...]:
        """What layers turn q and k by in a context of so many positions: one table or two (see `rope_table_of`)."""
        size, rotary = self.head_dim, self.rotary_dim
        tables = [RopeTable.of(self.rope_theta, rotary, size, self.rope_scaling, context)]
        if self.rope_local_theta is not None and SLIDING in self.layer_types:
            tables.append(RopeTable.of(self.rope_local_theta, rotary, size, None, context))
        if self.rope_layers:
            tables.append(RopeTable.of(self.rope_theta, 0, size, None, context))
        return tuple(tables)

    def rope_table_of(self, layer: int) -> int:
        """A layer's table: 1 for one with a window where such have a base of their own, or for one without RoPE."""
        if self.rope_layers:
            return 1 - self.rope_layers[layer]
        return int(self.rope_local_theta is not None and self.layer_types[layer] == SLIDING)

    @property
    def architecture(self) -> Architecture:
        """The row of its model type."""
        return ARCHITECTURES[self.model_type]

    @property
    def has_exact_zeros(self) -> bool:
        """Whether the activation is zero wherever gate is at most `hidden_act_param`: neurons can be off."""
        return self.hidden_act in ("relu", "relu2", "fatrelu")

    @property
    def kv_size(self) -> int:
        """Values of one token in the key (or value) cache of one layer."""
        return self.num_key_value_heads * self.head_dim


def rope_inverse_frequencies(config: ModelConfig, context: int = 0) -> npt.NDArray[np.float64]:
    """f64 [rotary_dim/2]: the angle by which pair i (elements i, i + rotary_dim/2) turns from one position to the
    next, in layers that see everything.
    """
    return inverse_frequencies(config.rope_theta, config.rotary_dim, config.rope_scaling, context)
