"""What is written comes back, and damage is named in one line."""

from __future__ import annotations

import os
import tracemalloc

import gguf
import numpy as np
import pytest
from container_files import (
    CONFIG,
    DOWN,
    SHARD,
    SOURCE,
    WEIGHTS,
    correct_checksums,
    edit_json,
    edit_matrix,
    edit_shard,
    flip_a_byte,
    half_a_shape,
    stacked,
    tensors,
    truncate,
    write,
    wrong_magic,
)
from tiny_models import CHAT_TEMPLATE, tiny_config, tiny_tokenizer_json

from spqt_ti.container import Container, reader
from spqt_ti.container.matrices import matrix_name
from spqt_ti.errors import ContainerError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats import q4_k
from spqt_ti.model.sites import Site


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_round_trip(layout, stored):
    container = stored[layout]
    assert (container.config, container.summary()) == (CONFIG, f"q4_k, {layout}")
    assert (container.source, container.chat_template) == (SOURCE, CHAT_TEMPLATE)
    assert (container.version, container.transformations, dict(container.extra)) == (2, (), {})
    assert container.tokenizer_json == tiny_tokenizer_json()
    expected = tensors(layout)
    assert set(container.names()) == set(expected)
    for name, values in expected.items():
        found = container.read(name)
        assert found.dtype == values.dtype
        assert not found.flags.writeable
        np.testing.assert_array_equal(found, values, err_msg=name)


def test_matrices_name_their_parts(stored):
    matrices = stored["zigzag"].matrices
    qkv = matrices["model.layers.1.self_attn.qkv_proj"]
    assert qkv.parts == {"q_proj": 192, "k_proj": 96, "v_proj": 96}
    assert (qkv.rows, qkv.cols) == (384, 192)
    assert qkv.projections()["model.layers.1.self_attn.v_proj"] == slice(288, 384)
    assert matrices["model.layers.0.mlp.gate_up_proj"].parts == {"gate_proj": 160, "up_proj": 160}
    assert list(matrices)[1:-1] == [matrix_name(layer, site) for layer in range(2) for site in Site]
    assert matrices["lm_head"].projections() == {"lm_head": slice(0, CONFIG.vocab_size)}
    assert matrices["model.embed_tokens"].projections() == {"model.embed_tokens": slice(0, CONFIG.vocab_size)}


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_dequantised_weights_have_hugging_face_names(layout, stored):
    container = stored[layout]
    found = dict(container.weights())
    assert list(found) == list(CONFIG.tensor_shapes())
    for name, values in found.items():
        assert values.shape == CONFIG.tensor_shapes()[name]
        exact = values.ndim == 1
        np.testing.assert_allclose(values, WEIGHTS[name], rtol=0, atol=0 if exact else 0.025, err_msg=name)
    qkv = container.dequantize("model.layers.0.self_attn.qkv_proj")
    np.testing.assert_array_equal(qkv[192:288], found["model.layers.0.self_attn.k_proj.weight"])


def test_row_bytes_are_ggml_s(stored):
    container = stored["row"]
    for part, rows in container.matrices["model.layers.0.self_attn.qkv_proj"].projections().items():
        found = container.row_bytes(part)
        w = WEIGHTS[f"{part}.weight"]
        padded = np.pad(w, ((0, 0), (0, 64)))  # 192 columns
        np.testing.assert_array_equal(found, q4_k.quantize(padded).reshape(len(w), 144))
        values = gguf.quants.dequantize(found, gguf.GGMLQuantizationType.Q4_K)[:, :192]
        np.testing.assert_array_equal(values, container.dequantize(part))
        assert len(found) == rows.stop - rows.start


def test_row_bytes_need_the_row_layout(stored):
    with pytest.raises(ContainerError, match="--layout row"):
        stored["zigzag"].row_bytes("model.layers.0.self_attn.q_proj")


def test_zigzag_superblocks_are_columns(stored):
    """Superblock (band, column) is Q4_K of 256 rows of that column; the tail band is cut to its sub-blocks."""
    container, name = stored["zigzag"], "model.layers.0.mlp.gate_up_proj"
    assert container.matrix(0, Site.GATE_UP).name == name
    data = container.read(f"{name}.q4_k")
    assert data.size == 192 * (144 + 48)  # 320 rows: a full band, and two sub-blocks
    superblocks = layouts.superblocks(data, 320, 192, "zigzag", q4_k.SCHEME)
    w = stacked(container.matrices[name])
    for column in (0, 17, 191):
        np.testing.assert_array_equal(superblocks[column], q4_k.quantize(w[:256, column][None])[0])
        tail = np.pad(w[256:, column], (0, 192))
        expected = q4_k.quantize(tail[None])[0]
        np.testing.assert_array_equal(superblocks[192 + column][:48], expected[:48])


def test_tied_head_is_stored_once(tmp_path):
    config = tiny_config(tie_word_embeddings=True)
    container = write(tmp_path / "tied", tensors("zigzag", config), config=config)
    assert "lm_head.q8_0" not in container.names()
    assert "lm_head.weight" not in dict(container.weights())
    np.testing.assert_array_equal(container.dequantize("lm_head"), container.dequantize("model.embed_tokens"))


def test_unknown_names(stored):
    for read in (stored["row"].read, stored["row"].dequantize, stored["row"].row_bytes):
        with pytest.raises(ContainerError, match=r"no (tensor|matrix) model\.nothing"):
            read("model.nothing")


def test_fingerprint_identifies_the_model(stored, copy, tmp_path):
    again = write(tmp_path / "again", tensors("zigzag"))
    assert again.fingerprint == stored["zigzag"].fingerprint == Container.open(copy).fingerprint
    other = tensors("zigzag")
    other["model.norm.weight"] = other["model.norm.weight"] + 1
    assert write(tmp_path / "other", other).fingerprint != again.fingerprint
    assert stored["row"].fingerprint != again.fingerprint


def test_other_files_beside_the_model_do_not_matter(copy):
    (copy / "calibration.json").write_text("{}")
    Container.open(copy)


# Damage ---------------------------------------------------------------------------------------------------------------

DAMAGES = {
    "truncated": (truncate, SHARD, "truncated or changed: it has 1,000 bytes, expected"),
    "checksum": (flip_a_byte, SHARD, "checksum mismatch"),
    "wrong magic": (wrong_magic, SHARD, "not a whole safetensors file"),
    "wrong shape": (edit_shard(half_a_shape), SHARD, f"tensor {DOWN} is uint8 [8960], expected uint8 [17920]"),
    "wrong type": (
        edit_shard(lambda content: content.update({DOWN: content[DOWN].view(np.float32)})),
        SHARD,
        f"tensor {DOWN} is float32 [4480], expected uint8 [17920]",
    ),
    "unknown type": (
        edit_shard(lambda content: content.update({DOWN: content[DOWN].view(np.int16)})),
        SHARD,
        f"tensor {DOWN} is I16, expected one of",
    ),
    "missing tensor": (
        edit_shard(lambda content: content.pop(DOWN)),
        SHARD,
        f"tensor {DOWN} is missing, expected uint8",
    ),
    "extra tensor": (
        edit_shard(lambda content: content.update(extra=np.zeros(3, np.uint8))),
        SHARD,
        "tensor extra is not part of this model",
    ),
    "missing shard": (lambda path: (path / SHARD).unlink(), SHARD, "the file is missing"),
    "missing manifest": (lambda path: (path / "spqt.json").unlink(), "", "spqt.json is missing"),
    "missing tokenizer": (lambda path: (path / "tokenizer.json").unlink(), "tokenizer.json", "the file is missing"),
    "no JSON": (lambda path: (path / "spqt.json").write_text("{"), "spqt.json", "not valid JSON"),
    "not UTF-8": (lambda path: (path / "spqt.json").write_bytes(b"\xff\xfe"), "spqt.json", "not UTF-8"),
    "deep JSON": (lambda path: (path / "spqt.json").write_text("[" * 100_000), "spqt.json", "nested deeper"),
    "no object": (lambda path: (path / "spqt.json").write_text("[]"), "spqt.json", "expected a JSON object"),
    "format": (edit_json("spqt.json", lambda m: m.update(format="gguf")), "spqt.json", "format is 'gguf'"),
    "version": (
        edit_json("spqt.json", lambda m: m.update(version=99)),
        "spqt.json",
        "format version is 99, this program reads 1 and 2",
    ),
    "scheme": (edit_matrix(scheme="q9"), "spqt.json", "scheme is 'q9', expected one of: q2_k, q3_k, q4_k"),
    "layout": (edit_matrix(layout="z"), "spqt.json", "layout is 'z', expected one of: zigzag, row"),
    "other layout": (edit_matrix(layout="row"), "", "expected uint8"),
    "other scheme": (edit_matrix(scheme="q6_k"), "", "q6_k is missing, expected uint8"),
    "no scheme": (edit_matrix(scheme=None), "spqt.json", "an entry of matrices has the scheme None"),
    "source": (edit_json("spqt.json", lambda m: m.pop("source")), "spqt.json", "source"),
    "matrices": (
        edit_json("spqt.json", lambda m: m["matrices"][0].update(rows=1)),
        "spqt.json",
        "its list of matrices is not that of config.json",
    ),
    "files": (edit_json("spqt.json", lambda m: m.update(files=3)), "spqt.json", "the list of files is missing"),
    "no config listed": (
        edit_json("spqt.json", lambda m: m["files"].pop("config.json")),
        "spqt.json",
        "it lists no config.json",
    ),
    "leads out": (
        edit_json("spqt.json", lambda m: m["files"].update({"../x": {"bytes": 1, "sha256": ""}})),
        "spqt.json",
        "its entry for file '../x' is malformed",
    ),
    "malformed entry": (
        edit_json("spqt.json", lambda m: m["files"].update({"config.json": 5})),
        "spqt.json",
        "its entry for file 'config.json' is malformed",
    ),
    "unknown architecture": (
        edit_json("config.json", lambda c: c.update(architectures=["MambaForCausalLM"], model_type="mamba")),
        "config.json",
        "'MambaForCausalLM' is not supported",
    ),
    "index": (
        edit_json("model.safetensors.index.json", lambda i: i.pop("weight_map")),
        "model.safetensors.index.json",
        "weight_map is missing",
    ),
    "index names another file": (
        edit_json("model.safetensors.index.json", lambda i: i["weight_map"].update({DOWN: "../../etc/passwd"})),
        "model.safetensors.index.json",
        "a file that spqt.json does not list",
    ),
    "index without a tensor": (
        edit_json("model.safetensors.index.json", lambda i: i["weight_map"].pop(DOWN)),
        "model.safetensors.index.json",
        f"tensor {DOWN} is missing",
    ),
}


@pytest.mark.parametrize(("damage", "file", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named(damage, file, message, copy):
    damage(copy)
    with pytest.raises(ContainerError) as caught:
        Container.open(copy)
    line = str(caught.value)
    assert "\n" not in line
    assert message in line
    assert str(copy / file) in line


def test_without_verification_checksums_are_not_compared(copy):
    flip_a_byte(copy)
    Container.open(copy, verify=False)


def test_not_a_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    for name in ("file", "nowhere", "file/below"):
        with pytest.raises(ContainerError, match="expected a quantised model"):
            Container.open(tmp_path / name)


def test_billions_of_layers_are_refused_at_once(copy):
    edit_json("config.json", lambda config: config.update(num_hidden_layers=10**9))(copy)
    tracemalloc.start()
    try:
        with pytest.raises(ContainerError, match=r"its list of matrices is not that of config\.json"):
            Container.open(copy)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_a_tokenizer_that_is_no_text(copy):
    (copy / "tokenizer.json").write_bytes(b"\xff\xfe")
    correct_checksums(copy)
    with pytest.raises(ContainerError, match=r"tokenizer\.json: not readable as text"):
        Container.open(copy)


# Models that change while they are used -------------------------------------------------------------------------------


def test_a_model_that_was_replaced_is_noticed(copy):
    opened = Container.open(copy)
    before = opened.read(DOWN)
    kept = before.copy()
    write(copy, tensors("row"), layout="row", overwrite=True)
    np.testing.assert_array_equal(before, kept)  # what was mapped stays
    with pytest.raises(ContainerError, match="replaced after it was opened; open it again"):
        opened.read(DOWN)


def test_a_file_that_was_changed_in_place_is_noticed(copy):
    opened = Container.open(copy)
    flip_a_byte(copy)
    os.utime(copy / SHARD, ns=(1, 1))
    with pytest.raises(ContainerError, match="replaced after it was opened"):
        opened.read(DOWN)


def test_a_model_that_is_replaced_while_it_is_opened(copy, monkeypatch):
    """The manifest is the old one's, everything after it the new one's: opened again, as what it is now."""
    read, calls = reader.Manifest.read, []

    def replaced(file):
        found = read(file)
        if not calls:
            calls.append(file)
            write(copy, tensors("row"), layout="row", overwrite=True)
        return found

    monkeypatch.setattr(reader.Manifest, "read", replaced)
    assert Container.open(copy).summary() == "q4_k, row"


def test_a_layer_that_there_is_not(stored):
    with pytest.raises(ContainerError, match="there is no layer 2, only 2"):
        stored["zigzag"].matrix(2, Site.QKV)


def test_biases(stored):
    container = stored["zigzag"]
    assert container.bias(0, Site.DOWN) is None
    names = [f"model.layers.1.self_attn.{part}_proj.bias" for part in "qkv"]
    np.testing.assert_array_equal(container.bias(1, Site.QKV), np.concatenate([WEIGHTS[name] for name in names]))
