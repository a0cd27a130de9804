"""Policies: the file keeps every bit, reads well in a diff, and anything else is refused by name."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spqt_ti.errors import PolicyError
from spqt_ti.model.sites import SITES
from spqt_ti.sparsity.policy import SparsityPolicy

THRESHOLDS = np.array([[0.1, 0.2, 0.3, 0.4], [0, 1e-30, 1.5, 7]], np.float32)
POLICY = SparsityPolicy("uniform", 0.4, THRESHOLDS, "abc123", {"text_sha256": "ff", "tokens": 12})
FIELDS = json.loads(POLICY.to_json())

thresholds = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.just(len(SITES))),
    elements=st.floats(0, width=32, allow_nan=False, allow_infinity=False),
)


def changed(**fields) -> str:
    return json.dumps(FIELDS | fields)


def without(name: str) -> str:
    return json.dumps({key: value for key, value in FIELDS.items() if key != name})


def rows_with(value: float | int | str | None) -> list[list]:
    return [[0.1, 0.2, 0.3, 0.4], [0.1, value, 0.3, 0.4]]


# Files ----------------------------------------------------------------------------------------------------------------


@given(thresholds, st.floats(0, 0.99), st.text(max_size=20))
def test_json_keeps_every_bit(values, sparsity, model):
    read = SparsityPolicy.from_json(SparsityPolicy("uniform", sparsity, values, model, {"tokens": 3}).to_json())
    assert read.thresholds.dtype == np.float32
    assert read.thresholds.tobytes() == values.tobytes()
    assert (read.method, read.sparsity, read.model, read.calibration) == ("uniform", sparsity, model, {"tokens": 3})


@given(hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(0, 2.0**100, width=32)))
def test_json_keeps_every_bit_of_the_weights(c):
    policy = SparsityPolicy("wina", 0.4, THRESHOLDS, "abc123", {}, {(1, "down"): c, (0, "o"): c[::-1]})
    read = SparsityPolicy.from_json(policy.to_json())
    assert read.to_json() == policy.to_json()
    assert read.weights[1, "down"].tobytes() == c.tobytes()


def test_format_1_is_read():
    assert SparsityPolicy.from_json(changed(format=1)).to_json() == POLICY.to_json()


def test_a_file_comes_back(tmp_path):
    path = tmp_path / "policy.json"
    path.write_text(POLICY.to_json(), encoding="utf-8")
    for place in (path, str(path)):
        assert SparsityPolicy.load(place).to_json() == POLICY.to_json()


def test_one_line_per_layer():
    """So that a diff of two policies shows which layers differ."""
    other = THRESHOLDS.copy()
    other[1, 2] = 9
    lines = POLICY.to_json().splitlines()
    differing = SparsityPolicy("uniform", 0.4, other, "abc123", POLICY.calibration).to_json().splitlines()
    assert [ours for ours, theirs in zip(lines, differing, strict=True) if ours != theirs] == [lines[-3]]
    assert json.loads(lines[-3]) == [float(v) for v in THRESHOLDS[1]]
    assert POLICY.to_json().endswith("}\n")


def test_the_file_names_its_sites():
    assert FIELDS["sites"] == ["qkv", "o", "gate_up", "down"]
    assert FIELDS["format"] == 2


# Refused --------------------------------------------------------------------------------------------------------------

BAD = {
    "empty": "",
    "not_json": "{sparsity: 0.4}",
    "cut_short": POLICY.to_json()[:-20],
    "list": "[]",
    "list_of_rows": json.dumps(FIELDS["thresholds"]),
    "number": "0.4",
    "null": "null",
    "string": '"uniform"',
    "empty_object": "{}",
    **{f"without_{name}": without(name) for name in FIELDS},
    "another_format": changed(format=4),
    "format_as_text": changed(format="1"),
    "site_missing": changed(sites=list(SITES[:3])),
    "sites_in_another_order": changed(sites=list(SITES[::-1])),
    "sites_null": changed(sites=None),
    "sparsity_text": changed(sparsity="much"),
    "sparsity_null": changed(sparsity=None),
    "calibration_number": changed(calibration=3),
    "thresholds_null": changed(thresholds=None),
    "thresholds_empty": changed(thresholds=[]),
    "thresholds_flat": changed(thresholds=[0.1, 0.2, 0.3, 0.4]),
    "rows_ragged": changed(thresholds=[[0.1, 0.2, 0.3, 0.4], [0.1, 0.2]]),
    "rows_short": changed(thresholds=[[0.1, 0.2, 0.3]]),
    "rows_long": changed(thresholds=[[0.1, 0.2, 0.3, 0.4, 0.5]]),
    "rows_too_deep": changed(thresholds=[[[0.1, 0.2, 0.3, 0.4]]]),
    "threshold_nan": changed(thresholds=rows_with(math.nan)),
    "threshold_infinite": changed(thresholds=rows_with(math.inf)),
    "threshold_negative": changed(thresholds=rows_with(-1e-9)),
    "threshold_null": changed(thresholds=rows_with(None)),
    "threshold_text": changed(thresholds=rows_with("big")),
    "weights_list": changed(weights=[1]),
    "weights_of_no_site": changed(weights={"0.norm": [1]}),
    "weights_of_no_layer": changed(weights={"2.qkv": [1]}),
    "weights_without_a_layer": changed(weights={"qkv": [1]}),
    "weights_negative": changed(weights={"0.qkv": [-1]}),
    "weights_nan": changed(weights={"0.qkv": [math.nan]}),
    "weights_nested": changed(weights={"0.qkv": [[1]]}),
    "threshold_a_huge_integer": changed(thresholds=rows_with(10**400)),
}


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_bad_files_are_refused_by_name(text, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PolicyError, match=r"mine\.json"):
        SparsityPolicy.load(path)


def test_the_unchanged_fields_are_accepted():
    """What makes the list above mean something."""
    assert SparsityPolicy.from_json(changed()).to_json() == POLICY.to_json()


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_a_threshold_above_f32_is_refused():
    with pytest.raises(PolicyError, match="0 or more"):
        SparsityPolicy.from_json(changed(thresholds=rows_with(1e39)))


def test_a_binary_file_is_refused_by_name(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\xff\xfe\x80" * 9)
    with pytest.raises(PolicyError, match=r"model\.gguf: not a sparsity policy: not UTF-8"):
        SparsityPolicy.load(path)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_no_such_file_and_a_folder(name, tmp_path):
    with pytest.raises(PolicyError, match="cannot read the policy") as caught:
        SparsityPolicy.load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 5), (2, 4, 1)])
def test_thresholds_of_another_shape(shape):
    with pytest.raises(PolicyError, match="expected \\[layers, 4\\]"):
        SparsityPolicy("uniform", 0.4, np.zeros(shape, np.float32), "abc123")


# Belonging ------------------------------------------------------------------------------------------------------------


def test_check_accepts_its_own_model():
    POLICY.check("abc123", 2)


def test_check_refuses_another_model():
    with pytest.raises(PolicyError, match="made for model abc123, this one is other"):
        POLICY.check("other", 2)


@pytest.mark.parametrize("layers", [1, 3])
def test_check_refuses_another_number_of_layers(layers):
    with pytest.raises(PolicyError, match=f"has 2 layers, the model {layers}"):
        POLICY.check("abc123", layers)
