"""What every reader of JSON in the package refuses, and that what is left is what Python's `json` reads."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spqt_ti.bounded_json import DEEPEST, JsonError, parse, parse_object, read_bytes, read_object

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_reads_what_json_writes(value):
    assert parse(json.dumps(value)) == value
    assert parse(json.dumps(value, ensure_ascii=True).encode()) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\xff{}", "not UTF-8"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 200_000, "nested deeper"),
        ('{"a":' * 200_000, "nested deeper"),
        ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "nested deeper"),
        ("[NaN]", "NaN is not a JSON number"),
        ("-Infinity", "-Infinity is not"),
        ("1" * 5000, "5000 digits"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ("[" + "1," * (1 << 22) + "1]", "more than 4,194,304"),
    ],
)
def test_refused(text, words):
    with pytest.raises(JsonError, match=words):
        parse(text)


def test_what_is_just_accepted():
    assert parse('{"a": 1, "a": 1}') == {"a": 1}
    parse("[" * DEEPEST + "]" * DEEPEST)
    assert parse("-9223372036854775808") == -(2**63)


@pytest.mark.parametrize("text", ["[]", "1", "null", "true", '"x"'])
def test_an_object_is_wanted(text):
    with pytest.raises(JsonError, match="expected a JSON object"):
        parse_object(text)


def test_files(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    assert read_object(path) == {"a": 1}
    with pytest.raises(JsonError, match="larger than 4 bytes"):
        read_object(path, 4)
    with pytest.raises(OSError, match="No such file"):
        read_object(tmp_path / "nothing")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(JsonError, match="not a regular file"):
        read_bytes(tmp_path / "pipe")
