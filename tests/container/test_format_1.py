"""Containers of format 1 are read: `tests/data/format_1` was written by f56b61c, the last version before format 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from spqt_ti.container import Container
from spqt_ti.errors import ContainerError
from spqt_ti.formats import q4_k, q8_0
from spqt_ti.model.sites import Site

WRITTEN = Path(__file__).parents[1] / "data" / "format_1"


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(WRITTEN, tmp_path / "copy"))


def test_it_says_what_it_is():
    container = Container.open(WRITTEN)
    assert container.version == 1
    assert container.fingerprint == "dd83a48028a69bc8"  # policies refer to it
    assert (container.source.name, container.source.sha256) == ("src", None)
    assert (container.transformations, container.extra) == ((), {})
    assert container.summary() == "q4_k, zigzag"
    assert container.chat_template.startswith("{% for message in messages %}")


def test_every_tensor_is_found():
    container, stored = Container.open(WRITTEN), {}
    for shard in WRITTEN.glob("*.safetensors"):
        stored |= load_file(shard)
    assert set(container.names()) == set(stored)
    for name, values in stored.items():
        np.testing.assert_array_equal(container.read(name), values, err_msg=name)
    qkv = container.matrix(1, Site.QKV)
    assert (qkv.scheme, qkv.layout, qkv.rows, qkv.cols) == (q4_k.SCHEME, "zigzag", 128, 64)
    np.testing.assert_array_equal(container.read_matrix(qkv), stored["model.layers.1.self_attn.qkv_proj.q4_k"])
    for matrix in (container.embedding, container.head):
        assert (matrix.scheme, matrix.layout, matrix.cols) == (q8_0.SCHEME, "row", 64)
        assert container.read_matrix(matrix).size == stored[matrix.tensor].size
    shapes = {name: values.shape for name, values in container.weights()}
    assert shapes == container.config.tensor_shapes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "q9"}, "scheme is 'q9', expected one of"),
        ({"scheme": None}, "scheme is None"),
        ({"layout": "row"}, "expected uint8"),
        ({"source": 3}, "source is 3"),
        ({"matrices": []}, "list of matrices"),
        ({"matrices": [3]}, "list of objects"),
    ],
)
def test_damage_is_named(change, message, copy):
    file = copy / "spqt.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ContainerError, match=message):
        Container.open(copy)
