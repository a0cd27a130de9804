"""ModelConfig: what is read, written and refused; RoPE frequencies against transformers and the paper's formula."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_models import CASES, LLAMA3_ROPE, llama3_table, tiny_config

from spqt_ti.errors import CheckpointError
from spqt_ti.model.architectures import ARCHITECTURES
from spqt_ti.model.config import ModelConfig, rope_inverse_frequencies
from spqt_ti.model.rope import RopeScaling

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "attention_bias": ..., "mlp_bias": ...}
NOT_IN_TRANSFORMERS = ("sparsellama", "bamboo", "minicpm")
QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
GEMMA3, GRANITE, SMOLLM3, PHI3 = (
    {**tiny_config(model_type=name).to_dict(), "intermediate_size": 160}
    for name in ("gemma3_text", "granite", "smollm3", "phi3")
)
TABLE = RopeScaling("longrope", frequency_factors=(1.0,) * 8 + (2.5,) * 8)


def fields(**changes: object) -> dict[str, object]:
    """A config.json with `changes`; a change to `...` deletes the field."""
    merged = tiny_config().to_dict() | changes
    return {name: value for name, value in merged.items() if value is not ...}


@pytest.mark.parametrize("changes", [*CASES.values(), {"rope_scaling": TABLE, "head_dim": 32}], ids=[*CASES, "table"])
def test_round_trip(changes):
    config = tiny_config(**changes)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_defaults_of_old_files():
    config = ModelConfig.from_dict(
        fields(
            head_dim=..., num_key_value_heads=..., rope_theta=..., rope_scaling=..., rms_norm_eps=..., hidden_act=...
        )
    )
    assert (config.head_dim, config.num_key_value_heads) == (192 // 4, 4)
    assert (config.rope_theta, config.rms_norm_eps, config.rope_scaling) == (10000.0, 1e-6, None)


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_scaling": LLAMA3, "rope_theta": 5e5},
        {"rope_scaling": {**LLAMA3, "type": "llama3"}, "rope_theta": 5e5},
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}, "rope_theta": ..., "rope_scaling": ...},
    ],
    ids=["transformers 4", "both keys", "transformers 5"],
)
def test_spellings_of_rope(spelling):
    config = ModelConfig.from_dict(fields(**spelling))
    assert (config.rope_scaling, config.rope_theta) == (LLAMA3_ROPE, 5e5)


def test_linear_by_its_oldest_spelling():
    config = ModelConfig.from_dict(fields(rope_scaling={"type": "linear", "factor": 4}))
    assert config.rope_scaling == RopeScaling("linear", 4.0)


@pytest.mark.parametrize(
    ("value", "expected"), [(None, ()), (2, (2,)), ([2, 5], (2, 5)), ([5, 2, 5], (5, 2)), (-1, ()), ([], ())]
)
def test_eos(value, expected):
    assert ModelConfig.from_dict(fields(eos_token_id=value)).eos_token_ids == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gemma", "architectures": ["GemmaForCausalLM"]}, "'GemmaForCausalLM'"),
        (
            {"architectures": ["MistralForCausalLM"]},
            "model_type is 'llama', but architectures says 'MistralForCausalLM'",
        ),
        ({"model_type": "gpt2", "architectures": ...}, "model type 'gpt2'"),
        ({"model_type": ..., "architectures": ...}, "model type None"),
        ({"model_type": ["llama"]}, "model type"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu'"),
        ({"hidden_act": ["silu"]}, "hidden_act ['silu']"),
        ({"hidden_act": "fatrelu"}, "hidden_act_param is missing"),
        ({"hidden_act": "fatrelu", "hidden_act_param": -1}, "hidden_act_param is -1"),
        ({"model_type": "minicpm3", "architectures": ["MiniCPM3ForCausalLM"]}, "'MiniCPM3ForCausalLM'"),
        ({"sliding_window": "wide"}, "sliding_window"),
        ({"sliding_window": 128}, "sliding_window (128 of 256 positions) is not part of the llama architecture"),
        ({**MISTRAL, "sliding_window": 0}, "sliding_window is 0"),
        ({**MISTRAL, "attention_bias": True}, "biases are not part of the mistral architecture"),
        ({**MISTRAL, "sliding_window": 8, "layer_types": ["full_attention"] * 2}, "layer_types"),
        ({**MISTRAL, "sliding_window": 8, "max_window_layers": 1}, "max_window_layers is 1"),
        ({**MISTRAL, "sliding_window": 8, "use_sliding_window": False}, "use_sliding_window is False"),
        ({**QWEN2, "layer_types": ["full_attention", "sliding_attention"]}, "there is no sliding_window"),
        ({**QWEN2, "layer_types": ["full_attention"]}, "layer_types has 1 entries, expected num_hidden_layers = 2"),
        ({**QWEN2, "layer_types": ["linear_attention"] * 2}, "layer_types is ['linear_attention', 'linear_attention']"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic'"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
            "1 frequency factors",
        ),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 24}},
            "needs a list of numbers long_factor",
        ),
        ({**GEMMA3, "rope_local_base_freq": 0}, "rope_local_base_freq is 0"),
        ({**GEMMA3, "query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ({**GEMMA3, "final_logit_softcapping": -1}, "final_logit_softcapping is -1"),
        ({**GEMMA3, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ({**GEMMA3, "_sliding_window_pattern": 3, "layer_types": ...}, "_sliding_window_pattern is 3"),
        ({**GEMMA3, "sliding_window_pattern": 0, "layer_types": ...}, "sliding_window_pattern is 0"),
        ({**GEMMA3, "rope_parameters": {"sliding_attention": {"factor": 2.0}}}, "rope_parameters.sliding_attention"),
        ({**GRANITE, "logits_scaling": None}, "logits_scaling is None"),
        ({**GRANITE, "scale_emb": 12}, "scale_emb is 12"),
        ({**SMOLLM3, "no_rope_layers": [1]}, "no_rope_layers is [1]"),
        ({**SMOLLM3, "no_rope_layers": [1, 2]}, "no_rope_layers is [1, 2]"),
        ({**PHI3, "partial_rotary_factor": 0.7}, "partial_rotary_factor is 0.7"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers is [1, 0]"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "low_freq_factor < high_freq_factor"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor 0.25"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantised (gptq)"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "already quantised (mlx"),
        ({"compression_config": {"format": "pack-quantized"}}, "already quantised (compression_config)"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mscale": 0.7}}, "rope_scaling.mscale"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters.full_attention"),
        ({"rope_scaling": LLAMA3, "rope_parameters": {**LLAMA3, "factor": 4.0}}, "disagree on factor: 8.0, 4.0"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads (3)"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"head_dim": ..., "hidden_size": 98}, "hidden_size (98)"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"hidden_size": 96.5}, "hidden_size is 96.5"),
        ({"hidden_size": float("nan")}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"vocab_size": -5}, "vocab_size is -5"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"eos_token_id": 9999}, "eos_token_id is 9999"),
        ({"bos_token_id": 320}, "bos_token_id is 320"),
        ({"eos_token_id": "</s>"}, "token ids"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_refused(changes, words):
    with pytest.raises(CheckpointError) as caught:
        ModelConfig.from_dict(fields(**changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# Keys of other models of the family's kin, each with a value that changes what is computed.
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("is_causal", False),
        ("use_bidirectional_attention", True),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("query_pre_attn_scalar", 256),
        ("attention_multiplier", 0.0078125),
        ("embedding_multiplier", 12.0),
        ("residual_multiplier", 0.22),
        ("logits_scaling", 8.0),
        ("logit_scale", 0.0625),
        ("scale_emb", 12),
        ("scale_depth", 1.4),
        ("dim_model_base", 256),
        ("clip_qkv", 8.0),
        ("use_qk_norm", True),
        ("rope_interleaved", True),
        ("no_rope_layers", [1, 1, 1, 0]),
        ("num_local_experts", 8),
        ("use_parallel_residual", True),
        ("alibi", True),
        ("attention_chunk_size", 8192),
        ("position_embedding_type", "alibi"),
        ("per_layer_config", {"0": {"num_key_value_heads": 1}}),
        ("pruned_heads", {"0": [1]}),
    ],
)
def test_what_changes_the_computation_is_refused_by_name(key, value):
    with pytest.raises(CheckpointError, match=f"^{key} is "):
        ModelConfig.from_dict(fields(**{key: value}))
    ModelConfig.from_dict(fields(**{key: None}))


@pytest.mark.parametrize(("key", "value"), [("is_causal", True), ("logits_scaling", 1.0), ("pruned_heads", {})])
def test_the_same_keys_with_values_that_change_nothing(key, value):
    assert ModelConfig.from_dict(fields(**{key: value})) == tiny_config()


def test_unknown_keys_are_named(caplog):
    changes = {"torch_dtype": "bfloat16", "use_cache": True, "unheard_of": None, "never": False}
    assert ModelConfig.from_dict(fields(**changes)) == tiny_config()
    assert not caplog.records
    assert ModelConfig.from_dict(fields(depth_of_thought=3, auto_map={})) == tiny_config()
    assert "'auto_map', 'depth_of_thought'" in caplog.text


@pytest.mark.parametrize(
    ("changes", "window", "layer_types"),
    [
        ({**MISTRAL, "sliding_window": 255}, 255, ()),
        ({**MISTRAL, "sliding_window": 256}, None, ()),  # as long as the context: it never hides anything
        ({**MISTRAL, "sliding_window": None}, None, ()),
        ({**MISTRAL, "sliding_window": ..., "max_position_embeddings": 32768}, 4096, ()),
        ({"sliding_window": 300}, None, ()),
        ({**QWEN2, "sliding_window": 100}, None, ()),  # use_sliding_window is absent
        ({**QWEN2, "sliding_window": 100, "use_sliding_window": True}, None, ()),  # from layer 28 on
        ({**QWEN2, "sliding_window": 100, "use_sliding_window": True, "max_window_layers": 0}, 100, ()),
        (
            {**QWEN2, "sliding_window": 100, "use_sliding_window": True, "max_window_layers": 1},
            100,
            ("full_attention", "sliding_attention"),
        ),
        (
            {
                **QWEN2,
                "sliding_window": 100,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            100,
            ("sliding_attention", "full_attention"),
        ),
        ({**QWEN2, "layer_types": ["full_attention"] * 2}, None, ()),
    ],
)
def test_windows_as_transformers_reads_them(changes, window, layer_types):
    config = ModelConfig.from_dict(fields(**changes))
    assert (config.sliding_window, config.layer_types) == (window, layer_types)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    transformers = pytest.importorskip("transformers", reason="extra oracle")
    theirs = transformers.AutoConfig.for_model(**fields(**changes))
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * 2
    sliding = [theirs.sliding_window if kind == "sliding_attention" else None for kind in kinds]
    if config.model_type != "llama":  # whose class ignores the key
        most = config.max_position_embeddings
        assert tuple(min(window or most, most) for window in sliding) == config.windows()


@pytest.mark.parametrize("model_type", [name for name in ARCHITECTURES if name not in NOT_IN_TRANSFORMERS])
def test_absent_fields_have_the_reference_defaults(model_type):
    """Absent, that is; null is another thing, except where transformers has nothing better."""
    transformers = pytest.importorskip("transformers", reason="extra oracle")
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    theirs = transformers.AutoConfig.for_model(model_type)
    sizes = {name: getattr(theirs, name) for name in names}
    config = ModelConfig.from_dict({"model_type": model_type} | sizes)
    assert config == ModelConfig.from_dict({"architectures": config.to_dict()["architectures"]} | theirs.to_dict()
                                           | {"architectures": None})  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [("swish", "silu"), ("relu", "relu"), ("gelu", "gelu"), ("gelu_new", "gelu_pytorch_tanh"),
     ("gelu_fast", "gelu_pytorch_tanh"), ("relu2", "relu2"), ("fatrelu", "fatrelu")],
)  # fmt: skip
def test_activations(name, expected):
    config = ModelConfig.from_dict(fields(hidden_act=name, hidden_act_param=0.01))
    assert config.hidden_act_param == (0.01 if name == "fatrelu" else 0)
    assert config.hidden_act == expected
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_tensor_shapes():
    shapes = tiny_config(num_hidden_layers=1, hidden_size=96, head_dim=32, attention_bias=True).tensor_shapes()
    assert shapes == {
        "model.embed_tokens.weight": (320, 96),
        "model.layers.0.input_layernorm.weight": (96,),
        "model.layers.0.self_attn.q_proj.weight": (128, 96),
        "model.layers.0.self_attn.q_proj.bias": (128,),
        "model.layers.0.self_attn.k_proj.weight": (64, 96),
        "model.layers.0.self_attn.k_proj.bias": (64,),
        "model.layers.0.self_attn.v_proj.weight": (64, 96),
        "model.layers.0.self_attn.v_proj.bias": (64,),
        "model.layers.0.self_attn.o_proj.weight": (96, 128),
        "model.layers.0.self_attn.o_proj.bias": (96,),
        "model.layers.0.post_attention_layernorm.weight": (96,),
        "model.layers.0.mlp.gate_proj.weight": (160, 96),
        "model.layers.0.mlp.up_proj.weight": (160, 96),
        "model.layers.0.mlp.down_proj.weight": (96, 160),
        "model.norm.weight": (96,),
        "lm_head.weight": (320, 96),
    }
    assert "lm_head.weight" not in tiny_config(tie_word_embeddings=True).tensor_shapes()


def test_llama3_frequencies_follow_the_paper():
    config = tiny_config(rope_scaling=LLAMA3_ROPE, rope_theta=500000.0, head_dim=64)
    plain = rope_inverse_frequencies(dataclasses.replace(config, rope_scaling=None))
    table = llama3_table(config)
    assert {1.0, 8.0} < set(table.tolist())  # all three branches are there
    np.testing.assert_allclose(plain / rope_inverse_frequencies(config), table, rtol=1e-6)


@pytest.mark.parametrize(
    "scaling", [None, RopeScaling("linear", 4.0), LLAMA3_ROPE, TABLE], ids=["default", "linear", "llama3", "table"]
)
def test_frequencies_agree_with_transformers(scaling):
    torch = pytest.importorskip("torch", reason="extra oracle")
    transformers = pytest.importorskip("transformers", reason="extra oracle")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = tiny_config(head_dim=32, rope_theta=500000.0, rope_scaling=scaling)
    rope = LlamaRotaryEmbedding(transformers.LlamaConfig(**config.to_dict()))
    positions = torch.arange(256)[None]
    cosine, _ = rope(torch.zeros(1), positions)
    angles = np.outer(np.arange(256), rope_inverse_frequencies(config))
    assert rope.attention_scaling == 1.0
    np.testing.assert_allclose(rope.inv_freq.numpy(), rope_inverse_frequencies(config), rtol=1e-6)
    np.testing.assert_allclose(cosine[0, :, :16].numpy(), np.cos(angles), atol=5e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case not in NOT_IN_TRANSFORMERS])
def test_transformers_reads_what_we_write(case, tmp_path):
    transformers = pytest.importorskip("transformers", reason="extra oracle")
    config = tiny_config(**CASES[case])
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert loaded.model_type == config.model_type
    assert ModelConfig.from_dict(loaded.to_dict()) == config


OTHER_KEYS = ["rope_parameters", "original_max_position_embeddings", "partial_rotary_factor", "quantization_config"]
KEYS = sorted({*tiny_config(model_type="qwen2", sliding_window=5).to_dict(), *fields(), *OTHER_KEYS})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([10**12, 10**400, "llama", "qwen2", "qwen3", "longrope", "llama3", "sliding_attention"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["rope_type", "factor", "short_factor", "long_factor", "rope_theta"]), inner),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=6))
@example(changes={**QWEN2, "num_hidden_layers": 10**13, "max_window_layers": 10**12, "use_sliding_window": True})
@example(changes={"rms_norm_eps": 10**400})
@example(changes={"hidden_size": 10**400})
@example(changes={"rope_scaling": {"rope_type": "linear", "factor": 10**400}})
def test_any_json_is_read_or_refused(changes):
    """Nothing but CheckpointError; what is read can be written."""
    with contextlib.suppress(CheckpointError):
        config = ModelConfig.from_dict(fields(**changes))
        if config.num_hidden_layers < 10**6:
            assert ModelConfig.from_dict(config.to_dict()) == config


def test_prosparse_llama() -> None:
    """Its class is not one of transformers, whose Llama has no FATReLU."""
    changes = {"model_type": "sparsellama", "architectures": ["SparseLlamaForCausalLM"]}
    config = ModelConfig.from_dict(fields(**changes, hidden_act="fatrelu", hidden_act_param=0.01))
    assert config.has_exact_zeros
    assert not config.architecture.activates_up


def test_turbosparse_mistral() -> None:
    """Its published config.json, without what other keys have in this test's base."""
    config = ModelConfig.from_dict({
        "architectures": ["BambooForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "relu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "bamboo", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": False, "vocab_size": 32064,
    })  # fmt: skip
    assert config.architecture.activates_up
    assert (config.sliding_window, config.windows()[0]) == (4096, 4096)
    assert not ModelConfig.from_dict(fields()).has_exact_zeros
