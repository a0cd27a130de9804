"""GGUF matrices kept bit for bit in row layout, beside what gguf's own reader finds in the file."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import tiny_models
from tiny_models import gguf_name, random_weights, tiny_config, write_gguf

from spqt_ti.container import Container
from spqt_ti.convert.quantize import quantize
from spqt_ti.errors import QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats.schemes import find
from spqt_ti.sources.open import open_checkpoint

CONFIG = tiny_config(hidden_size=256, intermediate_size=512, head_dim=64, num_hidden_layers=1)
WEIGHTS = random_weights(CONFIG)


def write(path, monkeypatch, types: dict[str, str], default: str):
    """A GGUF file whose matrices have `types` by a part of their names."""

    def add(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: str) -> None:
        chosen = next((kind for part, kind in types.items() if part in name), default)
        if values.ndim == 1 or chosen == "f32":
            writer.add_tensor(name, np.ascontiguousarray(values))
            return
        scheme = find(chosen)
        data = scheme.quantize(np.ascontiguousarray(values).reshape(-1, scheme.values)).reshape(len(values), -1)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[scheme.label])

    monkeypatch.setattr(tiny_models, "_add_gguf_tensor", add)
    return write_gguf(path, CONFIG, WEIGHTS)


def assert_kept(container: Container, source, kept: set[str]) -> None:
    """Bytes of the file, where rows keep their places; rows of q and k, and all values, are the file's."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    checkpoint = open_checkpoint(source)
    for matrix in container.matrices.values():
        if matrix.name not in kept:
            continue
        assert matrix.layout == "row"
        data = container.read_matrix(matrix).reshape(matrix.rows, -1)
        values = layouts.dequantize_matrix(data.reshape(-1), matrix.rows, matrix.cols, "row", matrix.scheme)
        for name, rows in matrix.projections().items():
            raw = np.asarray(stored[gguf_name(f"{name}.weight", CONFIG)].data).reshape(rows.stop - rows.start, -1)
            found = data[rows]
            if name.endswith(("q_proj", "k_proj")):
                assert sorted(map(bytes, found)) == sorted(map(bytes, raw))
            else:
                np.testing.assert_array_equal(found, raw)
            np.testing.assert_array_equal(values[rows], checkpoint.read(f"{name}.weight"))


@pytest.mark.parametrize("scheme", ["q4_k", "q5_k", "q6_k", "q8_0"])
def test_all_is_kept(scheme, tmp_path, monkeypatch, caplog):
    source = write(tmp_path / "model.gguf", monkeypatch, {"token_embd": "q8_0"}, scheme)
    container = quantize(source, tmp_path / "out", "row", keep=True, progress=False)
    assert_kept(container, source, set(container.matrices))
    assert {matrix.scheme.name for matrix in container.layer_matrices()} == {scheme}


def test_what_cannot_be_kept_is_said(tmp_path, monkeypatch, caplog):
    """As in a Q4_K_M file: v and down are of another type. The stacked qkv has one scheme, so it is made again."""
    caplog.set_level("INFO", logger="spqt_ti")
    source = write(
        tmp_path / "model.gguf", monkeypatch, {"attn_v": "q6_k", "ffn_down": "q6_k", "token": "q6_k"}, "q4_k"
    )
    container = quantize(source, tmp_path / "out", "row", "q5_k", keep=True, progress=False)
    prefix = "model.layers.0."
    again = {"model.embed_tokens", f"{prefix}self_attn.qkv_proj"}
    assert_kept(container, source, container.matrices.keys() - again)
    assert container.matrices[f"{prefix}self_attn.qkv_proj"].scheme.name == "q5_k"
    assert container.matrices[f"{prefix}mlp.down_proj"].scheme.name == "q6_k"
    assert "4 of 6 matrices are kept bit for bit" in caplog.text
    assert "quantised again" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "zigzag"}, "qkv: bytes are kept in the row layout alone"),
        ({"layout": "row", "rotate": ("heads",)}, "give keep or rotate"),
        ({"layout": "row"}, "no matrix can be kept"),
    ],
)
def test_refused(arguments, message, tmp_path, monkeypatch):
    source = write(tmp_path / "model.gguf", monkeypatch, {}, "f32")
    with pytest.raises(QuantizationError, match=message):
        quantize(source, tmp_path / "out", keep=True, progress=False, **arguments)
    assert not (tmp_path / "out").exists()
