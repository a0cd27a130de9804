"""`spqt.json`: its digest, and what format 2 has room for."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from container_files import CONFIG, SOURCE, edit_json, storage, tensors, write, writer

from spqt_ti.container import Container, ExtraTensor, Source, Storage
from spqt_ti.container.manifest import Manifest, online_record
from spqt_ti.container.matrices import DTYPES, TensorInfo
from spqt_ti.errors import ContainerError
from spqt_ti.formats import q6_k, q8_0
from spqt_ti.model.sites import Site


def test_every_flipped_bit_is_noticed(copy):
    file = copy / "spqt.json"
    data, generator = file.read_bytes(), np.random.default_rng(0)
    for position in [*range(200), *generator.integers(0, len(data), 1000)]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(generator.integers(8))
        file.write_bytes(damaged)
        with pytest.raises(ContainerError):
            Manifest.read(file)
    file.write_bytes(data)
    Container.open(copy)


@pytest.mark.parametrize("digest", [None, 3, "", "0" * 64, "\ud800" * 64])
def test_a_manifest_without_its_digest_is_refused(digest, copy):
    file = copy / "spqt.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"digest": digest}))
    with pytest.raises(ContainerError, match="checksum mismatch"):
        Container.open(copy)


def test_texts_of_every_kind_come_back(tmp_path):
    template = 'zeros "digest": "' + "0" * 64 + '" \ud800 \u2028 ß \x00'
    made = Manifest(Source("ß \ud800", {}), template, (), (), SOURCE.files, ())
    data = made.encode()
    assert b"\n" in data
    files = dict.fromkeys(("config.json", "tokenizer.json", "model.safetensors.index.json"), (1, ""))
    made = Manifest(Source("ß \ud800", {}), template, ({"kind": "gptq", "damp": 0.01},), (), files, ())
    (tmp_path / "spqt.json").write_bytes(made.encode())
    assert Manifest.read(tmp_path / "spqt.json") == made


# Schemes and layouts ----------------------------------------------------------------------------------------------


def test_a_scheme_and_a_layout_per_class(tmp_path):
    chosen = storage(down=Storage(q6_k.SCHEME, "zigzag"), gate_up=Storage(q8_0.SCHEME, "row"))
    chosen["head"] = Storage(q6_k.SCHEME, "zigzag")
    container = write(tmp_path / "model", tensors(stored_as=chosen), stored_as=chosen)
    assert container.summary() == "q4_k, zigzag; gate_up q8_0, row; down q6_k, zigzag; head q6_k, zigzag"
    assert container.matrix(1, Site.DOWN).tensor == "model.layers.1.mlp.down_proj.q6_k"
    assert container.head.tensor == "lm_head.q6_k"
    assert container.storage()["embedding"] == "q8_0, row"
    assert {name: w.shape for name, w in container.weights()} == CONFIG.tensor_shapes()


def test_a_single_matrix_may_differ(tmp_path):
    chosen = storage() | {"model.layers.1.mlp.down_proj": Storage(q8_0.SCHEME, "row")}
    container = write(tmp_path / "model", tensors(stored_as=chosen), stored_as=chosen)
    assert container.matrix(0, Site.DOWN).storage == storage()["down"]
    assert container.matrix(1, Site.DOWN).storage == Storage(q8_0.SCHEME, "row")
    assert container.storage()["down"] == "q4_k, zigzag; q8_0, row"


# Transformations and optional tensors -----------------------------------------------------------------------------


def test_transformations_are_kept(tmp_path):
    done = [{"kind": "rotation", "seed": 3, "sites": ["qkv"]}, {"kind": "gptq", "damp": 0.01, "required": False}]
    container = write(tmp_path / "model", tensors(), transformations=done)
    assert [dict(one) for one in container.transformations] == done


def test_a_transformation_that_decoding_must_know_is_refused(tmp_path):
    with pytest.raises(ContainerError, match="transformation 'hadamard' changes what decoding has to compute"):
        write(tmp_path / "model", tensors(), transformations=[{"kind": "hadamard", "required": True}])


def test_an_online_rotation_is_that_of_the_configuration(tmp_path):
    turned = dataclasses.replace(CONFIG, rotates_down=True)
    record = {**online_record(turned), "seed": 3}
    assert record["required"]
    container = write(tmp_path / "turned", tensors(), transformations=[record], config=turned)
    assert container.config.rotates_down
    other = record | {"transforms": {"160": "paley 20 * 8"}}
    unlike = (turned, []), (CONFIG, [record]), (turned, [other]), (turned, [record, record])
    for number, (config, done) in enumerate(unlike):
        with pytest.raises(ContainerError, match="says of the online rotation is not what config"):
            write(tmp_path / str(number), tensors(), transformations=done, config=config)


def factors(layer: int) -> ExtraTensor:
    return ExtraTensor(f"model.layers.{layer}.mlp.predictor.u", TensorInfo(DTYPES["F16"], (160, 8)), "predictor")


def test_optional_tensors(tmp_path):
    values = np.random.default_rng(0).standard_normal((160, 8)).astype(np.float16)
    constant = ExtraTensor("sites.mean", TensorInfo(DTYPES["F32"], (2, 4)), "constant")
    content = tensors() | {factors(1).name: values, "sites.mean": np.ones((2, 4), np.float32)}
    container = write(tmp_path / "model", content, extra=[factors(1), constant])
    assert container.extra == {factors(1).name: factors(1), "sites.mean": constant}
    np.testing.assert_array_equal(container.read(factors(1).name), values)
    assert factors(1).name not in dict(container.weights())


def test_an_optional_tensor_that_decoding_must_know_is_refused(tmp_path):
    shift = ExtraTensor("shift", TensorInfo(DTYPES["F32"], (3,)), "shift", required=True)
    with pytest.raises(ContainerError, match="role of a tensor 'shift' changes what decoding has to compute"):
        write(tmp_path / "model", tensors() | {"shift": np.zeros(3, np.float32)}, extra=[shift])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformations": 3}, "transformations is missing, or not a list of objects"),
        ({"transformations": [3]}, "not a list of objects"),
        ({"transformations": [{}]}, "an entry of transformations has the kind None"),
        ({"transformations": [{"kind": "x", "required": 1}]}, "neither true nor false"),
        ({"tensors": [{"name": "a", "dtype": "F99", "shape": [1], "role": "r"}]}, "F99"),
        ({"tensors": [{"name": "a", "dtype": "F32", "shape": [0], "role": "r"}]}, r"the shape \[0\]"),
        ({"tensors": [{"name": "a", "dtype": "F32", "shape": [True], "role": "r"}]}, r"the shape \[True\]"),
        ({"tensors": [{"name": "a", "dtype": "F32", "shape": [10**18], "role": "r"}]}, "tensor a is missing"),
        ({"tensors": [{"name": "a", "dtype": "F32", "shape": [1]}]}, "has the role None"),
        ({"tensors": [{"name": "a", "dtype": "F32", "shape": [1], "role": "r"}] * 2}, "the same name"),
        ({"source": "text"}, "source is missing or has no name"),
        ({"source": {"name": "x", "files": {"a": {"bytes": -1, "sha256": ""}}}}, "malformed"),
        ({"files": {"a\0b": {"bytes": 1, "sha256": ""}}}, "malformed"),
    ],
)
def test_malformed_fields_are_named(change, message, copy):
    edit_json("spqt.json", lambda manifest: manifest.update(change))(copy)
    with pytest.raises(ContainerError, match=message):
        Container.open(copy)


def test_space_is_asked_for_before_any_work(tmp_path):
    large = ExtraTensor("large", TensorInfo(DTYPES["F32"], (1 << 58,)), "constant")
    with pytest.raises(ContainerError, match="bytes needed"), writer(tmp_path / "model", extra=[large]):
        raise AssertionError
    assert not list(tmp_path.iterdir())
