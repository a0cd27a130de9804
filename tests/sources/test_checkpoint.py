"""Hugging Face directories and GGUF files: every tensor comes back exactly, and every damage ends in one clear line."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import CASES, LLAMA3_ROPE, random_weights, rounded, tiny_config, write_gguf, write_huggingface

from spqt_ti.errors import CheckpointError
from spqt_ti.model.config import rope_inverse_frequencies
from spqt_ti.model.rope import RopeScaling
from spqt_ti.sources import gguf_file
from spqt_ti.sources.gguf_file import GgufFile, unpermute
from spqt_ti.sources.open import open_checkpoint

# GGUF does not say which layers a window is for, nor another activation than the architecture's.
GGUF_CASES = {name: changes for name, changes in CASES.items() if not {"layer_types", "hidden_act"} & set(changes)}
_TINY_GEMMA = {"query_pre_attn_scalar": 48.0}  # of files: the head size
GGUF_CASES |= {
    name: CASES[name] | {"multipliers": tuple((dict(CASES[name]["multipliers"]) | _TINY_GEMMA).items())}
    for name in ("gemma2", "gemma3_text")
}
GGUF_CASES["gemma3_text"]["layer_types"] = ("sliding_attention",) * 2  # the sixth would see everything
GGUF_CASES["minicpm"] = {
    "model_type": "minicpm", "num_hidden_layers": 4,
    "multipliers": (("dim_model_base", 48.0), ("scale_depth", 1.5), ("scale_emb", 3.0)),
}  # fmt: skip
GGUF_CASES["qwen2"] = {"model_type": "qwen2"}
K_QUANTS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def assert_same(checkpoint, weights):
    assert set(checkpoint.names()) == set(weights)
    for name, values in weights.items():
        read = checkpoint.read(name)
        assert read.dtype == np.float32
        assert read.flags.c_contiguous
        assert checkpoint.shape(name) == values.shape
        np.testing.assert_array_equal(read, values, err_msg=name)


def opened_with_error(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# Hugging Face directories ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_directory(changes, tmp_path):
    config = tiny_config(**changes)
    weights = random_weights(config)
    checkpoint = open_checkpoint(write_huggingface(tmp_path, config, weights))
    assert checkpoint.config == config
    assert checkpoint.chat_template == tiny_models.CHAT_TEMPLATE
    assert json.loads(checkpoint.tokenizer_json)["model"]["type"] == "BPE"
    assert_same(checkpoint, weights)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_types_and_shards(dtype, shards, tmp_path):
    config = tiny_config()
    weights = random_weights(config)
    checkpoint = open_checkpoint(write_huggingface(tmp_path, config, weights, dtype=dtype, shards=shards))
    assert_same(checkpoint, rounded(weights, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_directory_saved_by_transformers(dtype, tmp_path):
    torch = pytest.importorskip("torch", reason="extra oracle")
    transformers = pytest.importorskip("transformers", reason="extra oracle")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**tiny_config(attention_bias=True).to_dict()))
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path, max_shard_size="200KB")
    (tmp_path / "tokenizer.json").write_text(tiny_models.tiny_tokenizer_json())
    checkpoint = open_checkpoint(tmp_path)
    assert_same(checkpoint, {name: value.float().numpy() for name, value in model.state_dict().items()})


def test_generation_config_says_what_ends_a_text(tmp_path):
    write_huggingface(tmp_path, tiny_config(), random_weights(tiny_config()))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    assert open_checkpoint(tmp_path).config.eos_token_ids == (2, 0)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    assert open_checkpoint(tmp_path).config.eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, None),
        ("plain", "plain"),
        ([{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tool_use", "template": "t"}], None),
        (["odd"], None),
    ],
)
def test_chat_template(template, expected, tmp_path):
    write_huggingface(tmp_path, tiny_config(), random_weights(tiny_config()), chat_template=template)
    assert open_checkpoint(tmp_path).chat_template == expected
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert open_checkpoint(tmp_path).chat_template == "from the file"


def test_tables_and_second_copies_are_left_out(tmp_path):
    config = tiny_config(tie_word_embeddings=True)
    weights = random_weights(config)
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(24, np.float32),
        "lm_head.weight": weights["model.embed_tokens.weight"],
    }
    assert_same(open_checkpoint(write_huggingface(tmp_path, config, weights | extra)), weights)


def test_a_head_of_its_own_is_used_whatever_the_flag_says(tmp_path):
    """As transformers 5 loads it: somebody has trained the head alone."""
    config = tiny_config(tie_word_embeddings=True)
    weights = random_weights(config)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["lm_head.weight"][-1, -1] += 1e-3
    directory = write_huggingface(tmp_path, config, weights)
    checkpoint = open_checkpoint(directory)
    assert not checkpoint.config.tie_word_embeddings
    assert_same(checkpoint, weights)
    torch = pytest.importorskip("torch", reason="extra oracle")
    transformers = pytest.importorskip("transformers", minversion="5.0", reason="extra oracle")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).lm_head.weight
    np.testing.assert_array_equal(theirs.detach().numpy(), weights["lm_head.weight"])


def test_a_tied_embedding_saved_as_the_head(tmp_path):
    """As transformers 5 loads it."""
    config = tiny_config(tie_word_embeddings=True)
    weights = random_weights(config)
    stored = {name.replace("model.embed_tokens", "lm_head"): values for name, values in weights.items()}
    directory = write_huggingface(tmp_path, config, stored)
    assert_same(open_checkpoint(directory), weights)
    torch = pytest.importorskip("torch", reason="extra oracle")
    transformers = pytest.importorskip("transformers", minversion="5.0", reason="extra oracle")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).model.embed_tokens.weight
    np.testing.assert_array_equal(theirs.detach().numpy(), weights["model.embed_tokens.weight"])


@pytest.mark.parametrize("ending", ["qweight", "weight.absmax", "weight_packed"])
def test_quantised_weights_of_a_silent_config(ending, tmp_path):
    name = f"model.layers.0.self_attn.q_proj.{ending}"
    write_huggingface(tmp_path, tiny_config(), random_weights(tiny_config()) | {name: np.ones((4, 4), np.float32)})
    assert f"already quantised ({'GPTQ or AWQ' if ending == 'qweight' else ''}" in opened_with_error(tmp_path)


def _write(tmp_path: Path, **options) -> Path:
    config = tiny_config()
    return write_huggingface(tmp_path / "model", config, random_weights(config), **options)


def _without(name: str):
    return lambda directory: (directory / name).unlink()


def _text(name: str, text: str):
    return lambda directory: (directory / name).write_text(text)


def _cut(name: str, size: int):
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:size])


def _only_pickles(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    # Opening this would end the test run.
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap()))


class _Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle was opened')",))


def _weights(**changes):
    """Rewrite model.safetensors with tensors replaced, or dropped (None)."""

    def apply(directory: Path) -> None:
        weights = random_weights(tiny_config()) | {name.replace("__", "."): value for name, value in changes.items()}
        kept = {name: value for name, value in weights.items() if value is not None}
        tiny_models.write_safetensors(directory / "model.safetensors", kept)

    return apply


def _integers(directory: Path) -> None:
    path = directory / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"F32"', b'"I32"', 1))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without("config.json"), "config.json: no such file (this is not a Hugging Face model directory)"),
        (_text("config.json", "{"), "config.json: not valid JSON"),
        (_text("config.json", "[]"), "config.json: expected a JSON object"),
        (_text("config.json", '{"model_type": "bert"}'), "config.json: model type 'bert' is not supported"),
        (_text("generation_config.json", '{"eos_token_id": "x"}'), "token ids"),
        (_without("tokenizer.json"), "tokenizer.json: no such file"),
        (_without("model.safetensors"), "neither model.safetensors nor"),
        (_only_pickles, "pytorch_model.bin is a pickle"),
        (_cut("model.safetensors", 0), "model.safetensors: not a whole safetensors file"),
        (_cut("model.safetensors", 100), "model.safetensors: not a whole safetensors file"),
        (_cut("model.safetensors", -4), "model.safetensors: not a whole safetensors file"),
        (_text("model.safetensors", "PK" + 50 * "x"), "model.safetensors: not a whole safetensors file"),
        (_integers, "is I32, expected F32, F16 or BF16"),
        (_weights(model__norm__weight=None), "tensor model.norm.weight is missing, expected shape [192]"),
        (
            _weights(model__norm__weight=np.ones(191, np.float32)),
            "tensor model.norm.weight has shape [191], expected [192]",
        ),
        (
            _weights(model__layers__1__mlp__up_proj__weight=np.ones((192, 160), np.float32)),
            "tensor model.layers.1.mlp.up_proj.weight has shape [192, 160], expected [160, 192]",
        ),
        (
            _weights(model__layers__0__self_attn__q_proj__bias=np.ones(192, np.float32)),
            "tensor model.layers.0.self_attn.q_proj.bias is not part of a llama model as configured",
        ),
        (
            lambda directory: (directory / "config.json").write_text(
                json.dumps(tiny_config(num_hidden_layers=10**12).to_dict())
            ),
            "1000000000000 layers are configured",
        ),
    ],
)
def test_damaged_directory(damage, words, tmp_path):
    directory = _write(tmp_path)
    damage(directory)
    assert words in opened_with_error(directory)


def _index(change):
    def apply(directory: Path) -> None:
        path = directory / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index)
        path.write_text(json.dumps(index))

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without("model-00002-of-00002.safetensors"), "model-00002-of-00002.safetensors: this shard is missing"),
        (_cut("model-00001-of-00002.safetensors", 500), "model-00001-of-00002.safetensors: not a whole"),
        (_index(lambda i: i.pop("weight_map")), "weight_map is missing"),
        (
            _index(lambda i: i["weight_map"].update({"model.norm.weight": "../other.safetensors"})),
            "tensor model.norm.weight is said to be in '../other.safetensors'",
        ),
        (_index(lambda i: i["weight_map"].update({"model.norm.weight": 3})), "is said to be in 3"),
    ],
)
def test_damaged_shards(damage, words, tmp_path):
    directory = _write(tmp_path, shards=2)
    damage(directory)
    assert words in opened_with_error(directory)


def test_a_tensor_that_the_index_forgot_is_read(tmp_path):
    """As transformers, which reads whole shards."""
    directory = _write(tmp_path, shards=2)
    _index(lambda i: i["weight_map"].pop("model.norm.weight"))(directory)
    open_checkpoint(directory).read("model.norm.weight")


def test_nothing_there(tmp_path):
    assert "no such file or directory" in opened_with_error(tmp_path / "nothing")
    assert "config.json: no such file" in opened_with_error(tmp_path)


# GGUF -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", GGUF_CASES.values(), ids=GGUF_CASES)
def test_gguf(changes, tmp_path):
    config = tiny_config(**changes)
    weights = random_weights(config)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", config, weights))
    assert checkpoint.chat_template == tiny_models.CHAT_TEMPLATE
    assert checkpoint.config.rms_norm_eps == 1e-5  # the decimal, not the f32 nearest to it
    np.testing.assert_allclose(rope_inverse_frequencies(checkpoint.config), rope_inverse_frequencies(config), rtol=1e-6)
    if config.rope_scaling != LLAMA3_ROPE:  # of an original context that no released model has: arrives as a table
        assert checkpoint.config == config
    if config.architecture.norm_offset:  # norms lose their last bits to the 1 that files add
        for name in [name for name in weights if name.endswith("norm.weight")]:
            np.testing.assert_allclose(checkpoint.read(name), weights[name], rtol=0, atol=2**-23)
            weights[name] = checkpoint.read(name)
    assert_same(checkpoint, weights)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_gguf_types(kind, tmp_path):
    config = tiny_config()
    weights = random_weights(config)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", config, weights, kind=kind))
    quantized = gguf.GGMLQuantizationType[kind]
    through = lambda w: gguf.quants.dequantize(gguf.quants.quantize(w, quantized), quantized)  # noqa: E731
    assert_same(checkpoint, {name: through(w) if w.ndim == 2 else w for name, w in weights.items()})


@pytest.mark.parametrize("kind", K_QUANTS)
def test_gguf_k_quants(kind, tmp_path, monkeypatch):
    """Random blocks, written raw, dequantised in pieces of three rows."""
    quantized = gguf.GGMLQuantizationType[kind]
    size = gguf.GGML_QUANT_SIZES[quantized][1]
    raw = np.random.default_rng(0).integers(0, 256, (10, 2 * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("x", raw, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(gguf_file, "_CHUNK_VALUES", 3 * 512)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, quantized)
    read = GgufFile.open(tmp_path / "m.gguf").load("x")
    assert read.shape == (10, 512)
    np.testing.assert_array_equal(read.view(np.uint32), expected.view(np.uint32))


def test_gguf_header_as_the_gguf_package_reads_it(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", tiny_config(), random_weights(tiny_config()), kind="Q8_0")
    ours, theirs = GgufFile.open(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, value in fields.items():
        mine = ours.metadata[key]
        assert (mine.tolist() if isinstance(mine, np.ndarray) else mine) == value
    for tensor in theirs.tensors:
        entry = ours.tensors[tensor.name]
        assert entry.shape == tuple(tensor.shape.tolist()[::-1])
        assert (entry.kind, entry.offset, entry.nbytes) == (tensor.tensor_type, tensor.data_offset, tensor.n_bytes)


def test_gguf_alignment(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(4096)
    writer.add_tensor("x", values)
    writer.add_tensor("y", -values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile.open(tmp_path / "m.gguf")
    assert file.tensors["x"].offset == 4096
    np.testing.assert_array_equal(file.load("y"), -values)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_row_order_by_what_rope_does(heads):
    """ggml turns neighbours, Hugging Face turns halves: on rows in the right order both give the same scores."""
    head_dim, generator = 8, np.random.default_rng(heads)
    angles = 3.0 * 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)
    stored = generator.standard_normal((heads * head_dim, 5)).astype(np.float32)
    x = generator.standard_normal(5)
    neighbours = (stored @ x).reshape(heads, head_dim // 2, 2)
    halves = (unpermute(stored, heads) @ x).reshape(heads, 2, head_dim // 2)
    turned_neighbours = (neighbours[..., 0] + 1j * neighbours[..., 1]) * np.exp(1j * angles)
    turned_halves = (halves[:, 0] + 1j * halves[:, 1]) * np.exp(1j * angles)
    np.testing.assert_allclose(turned_halves, turned_neighbours)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_published_llama3_table_becomes_the_formula(factor, tmp_path):
    rope = RopeScaling("llama3", factor, 1.0, 4.0, 8192)
    config = tiny_config(rope_scaling=rope, rope_theta=500000.0, head_dim=64)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", config, random_weights(config)))
    assert checkpoint.config == config


def test_a_table_of_ones_is_no_scaling(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_models, "llama3_table", lambda config: np.ones(config.head_dim // 2, np.float32))
    config = tiny_config(rope_scaling=LLAMA3_ROPE)
    assert open_checkpoint(write_gguf(tmp_path / "m.gguf", config, random_weights(config))).config.rope_scaling is None


def test_absent_biases_are_zero(tmp_path):
    """Qwen-like: q, k and v have biases, o has none. Hugging Face's flag knows only all or none."""
    config = tiny_config(attention_bias=True)
    weights = random_weights(config)
    absent = ("blk.0.attn_output.bias", "blk.1.attn_output.bias")
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", config, weights, leave_out=absent))
    assert checkpoint.config.attention_bias
    zeros = {f"model.layers.{i}.self_attn.o_proj.bias": np.zeros(192, np.float32) for i in (0, 1)}
    assert_same(checkpoint, weights | zeros)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"llama.expert_count": 8}, "mixtures of experts"),
        ({"llama.rope.dimension_count": 24}, "llama.rope.dimension_count is 24, expected the head size 48"),
        ({"llama.attention.value_length": 64}, "llama.attention.value_length is 64"),
        ({"llama.rope.scaling.type": "yarn"}, "RoPE scaling 'yarn'"),
        ({"llama.block_count": 3}, "tensor model.layers.2.input_layernorm.weight (and 8 more) is missing"),
        ({"llama.block_count": 1}, "tensor model.layers.1"),
        ({"llama.block_count": 2**31}, "2147483648 layers are configured"),
        ({"llama.embedding_length": 191}, "model.embed_tokens.weight has shape [320, 192], expected [320, 191]"),
        ({"llama.feed_forward_length": 128}, "has shape [160, 192], expected [128, 192]"),
        ({"llama.vocab_size": 100}, "expected [100, 192]"),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count is 0"),
        ({"llama.attention.head_count_kv": 3}, "not a multiple of num_key_value_heads (3)"),
        ({"llama.attention.head_count": "four"}, "llama.attention.head_count is 'four'"),
        ({"llama.rope.freq_base": "big"}, "llama.rope.freq_base"),
        ({"llama.context_length": 0}, "max_position_embeddings is 0"),
        ({"tokenizer.ggml.eos_token_id": 5000}, "eos_token_id is 5000"),
        ({"tokenizer.ggml.bos_token_id": "one"}, "token ids"),
        ({"llama.rope.scaling.attn_factor": 2.0}, "llama.rope.scaling.attn_factor is 2.0"),
        ({"llama.attention.causal": False}, "llama.attention.causal is False"),
        ({"llama.attention.scale": 0.5}, "llama.attention.scale is 0.5"),
        ({"llama.logit_scale": 8.0}, "llama.logit_scale is 8.0"),
        ({"llama.use_parallel_residual": True}, "llama.use_parallel_residual is True"),
        ({"general.type": "adapter"}, "general.type is 'adapter'"),
        ({"split.count": 4}, "one of 4 parts"),
        ({"split.count": "four"}, "split.count is 'four'"),
    ],
)
def test_gguf_refused(metadata, words, tmp_path):
    config = tiny_config()
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config), metadata=metadata)
    assert words in opened_with_error(path)


def test_gguf_window_of_an_architecture_that_has_it_in_some_layers(tmp_path):
    config = tiny_config(model_type="qwen2")
    window = {"qwen2.attention.sliding_window": 64}
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config), metadata=window)
    assert "sliding_window (64 of 256 positions) is not supported for architecture 'qwen2'" in opened_with_error(path)


@pytest.mark.parametrize("key", ["general.description", "general.tags", "quantize.imatrix.file", "x.y",
                                 "tokenizer.chat_template.rag"])  # fmt: skip
def test_gguf_text_that_nobody_needs_may_be_in_any_encoding(key, tmp_path):
    config = tiny_config()
    metadata = {key: ["PLACE", "text"] if key.endswith("tags") else "PLACE"}
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config), metadata=metadata)
    path.write_bytes(path.read_bytes().replace(b"PLACE", "affiné".encode("latin-1")[-5:]))
    assert open_checkpoint(path).config == config


@pytest.mark.parametrize("numbers", [[2, 2], [2, 1]])
def test_gguf_lists_of_equal_numbers_are_a_number(numbers, tmp_path):
    """llama.cpp allows one number per layer."""
    config = tiny_config(num_key_value_heads=2)
    metadata = {"llama.attention.head_count_kv": numbers, "llama.attention.head_count": [4, 4]}
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config), metadata=metadata)
    if numbers == [2, 2]:
        assert open_checkpoint(path).config == config
    else:
        assert "llama.attention.head_count_kv differs" in opened_with_error(path)


def test_gguf_values_that_change_nothing(tmp_path, caplog):
    config = tiny_config()
    metadata = {
        "llama.rope.scaling.attn_factor": 1.0,
        "llama.attention.causal": True,
        "llama.attention.scale": 48**-0.5,
        "llama.expert_used_count": 0,
        "general.type": "model",
    }
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config), metadata=metadata)
    assert open_checkpoint(path).config == config
    assert not caplog.records
    write_gguf(path, config, random_weights(config), metadata={"llama.attention.brand_new": 1})
    open_checkpoint(path)
    assert "llama.attention.brand_new is not known" in caplog.text


@pytest.mark.parametrize(
    ("metadata", "scaling"),
    [
        ({"llama.rope.scaling.factor": 4.0}, RopeScaling("linear", 4.0)),  # llama.cpp's type where none is given
        ({"llama.rope.scale_linear": 4.0}, RopeScaling("linear", 4.0)),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, None),
        ({"llama.rope.scaling.type": "linear"}, None),
        ({"llama.rope.scaling.factor": 0.0}, None),
    ],
)
def test_gguf_rope_scaling(metadata, scaling, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", tiny_config(), random_weights(tiny_config()), metadata=metadata)
    assert open_checkpoint(path).config.rope_scaling == scaling


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blk.1.ffn_up.weight", "tensor model.layers.1.mlp.up_proj.weight is missing, expected shape [160, 192]"),
        ("token_embd.weight", "tensor token_embd.weight is missing"),
        ("output_norm.weight", "tensor model.norm.weight is missing"),
    ],
)
def test_gguf_missing_tensor(name, words, tmp_path):
    config = tiny_config()
    assert words in opened_with_error(
        write_gguf(tmp_path / "m.gguf", config, random_weights(config), leave_out=(name,))
    )


def _other_architecture(raw: bytes) -> bytes:
    return raw.replace(b"llama", b"falco", 1) if raw.count(b"general.architecture") else raw


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: b"", "the file is empty"),
        (lambda raw: b"GG", "not a GGUF file"),
        (lambda raw: b"PK\x03\x04" + raw[4:], "not a GGUF file (it starts with b'PK\\x03\\x04', expected b'GGUF')"),
        (lambda raw: raw[:4] + struct.pack("<I", 1) + raw[8:], "GGUF version 1 is not supported"),
        (lambda raw: raw[:4] + struct.pack(">I", 3) + raw[8:], "GGUF version 50331648 is not supported"),
        (lambda raw: raw[:20], "truncated in the header"),
        (lambda raw: raw[:1000], "truncated in the header"),
        (lambda raw: raw[:-5], "truncated: tensor output.weight ends at byte"),
        (lambda raw: raw[: len(raw) // 2], "truncated: tensor"),
        (_other_architecture, "architecture 'falco' is not supported"),
        (lambda raw: raw.replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_up.weighs"), "is missing"),
        (lambda raw: raw.replace(b"blk.0.ffn_up.weight", b"blk.1.ffn_up.weight"), "two tensors have the same name"),
        (lambda raw: raw[:8] + struct.pack("<Q", 2**63) + raw[16:], "truncated|damaged|unknown type"),
    ],
)
def test_damaged_gguf(damage, words, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", tiny_config(), random_weights(tiny_config()))
    path.write_bytes(damage(path.read_bytes()))
    message = opened_with_error(path)
    assert any(word in message for word in words.split("|")), message


@pytest.fixture(scope="module")
def whole_gguf(tmp_path_factory) -> Path:
    config = tiny_config(rope_scaling=LLAMA3_ROPE, attention_bias=True)
    return write_gguf(tmp_path_factory.mktemp("fuzz") / "whole.gguf", config, random_weights(config))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_never_escapes(data, whole_gguf):
    """Bytes of the header overwritten, or the file cut: it opens, or it is a CheckpointError, and nothing else."""
    raw = bytearray(whole_gguf.read_bytes())
    header = GgufFile.open(whole_gguf)
    end = min(tensor.offset for tensor in header.tensors.values())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    path = whole_gguf.with_name("damaged.gguf")
    path.write_bytes(raw)
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError:
        return
    checkpoint.read(checkpoint.names()[1])


# The real model -------------------------------------------------------------------------------------------------------


def test_smollm2(smollm2_gguf):
    checkpoint = open_checkpoint(smollm2_gguf)
    config = checkpoint.config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (576, 1536, 30)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (9, 3, 64)
    assert (config.vocab_size, config.max_position_embeddings) == (49152, 8192)
    assert (config.rope_theta, config.rms_norm_eps, config.rope_scaling) == (100000.0, 1e-5, None)
    assert (config.tie_word_embeddings, config.bos_token_id, config.eos_token_ids) == (True, 1, (2,))
    assert len(checkpoint.names()) == 272
    # By hand: Q4_1 is f16 d, f16 m and 16 bytes with value i in the low and value i + 16 in the high half of byte i.
    entry = GgufFile.open(smollm2_gguf).tensors["blk.7.attn_k.weight"]
    raw = smollm2_gguf.read_bytes()[entry.offset : entry.offset + 64 * entry.row_bytes]
    blocks = np.frombuffer(raw, np.uint8).reshape(64, 18, 20)
    scales = blocks[..., :4].copy().view(np.float16).astype(np.float32)
    quants = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], axis=-1)
    head = (quants * scales[..., :1] + scales[..., 1:]).reshape(64, 576)  # the first key head, as stored
    ours = checkpoint.read("model.layers.7.self_attn.k_proj.weight")[:64]
    np.testing.assert_array_equal(ours[:32], head[0::2])
    np.testing.assert_array_equal(ours[32:], head[1::2])


@pytest.mark.slow
def test_smollm2_as_transformers_reads_it(smollm2_gguf):
    torch = pytest.importorskip("torch", reason="extra oracle")
    transformers = pytest.importorskip("transformers", reason="extra oracle")
    pytest.importorskip("accelerate", reason="transformers wants it for GGUF files")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    )
    state = {name: value.numpy() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    assert_same(open_checkpoint(smollm2_gguf), state)
