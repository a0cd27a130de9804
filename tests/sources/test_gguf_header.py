"""Headers that lie: each is refused before memory or time is spent on it. Text that nobody needs is not decoded."""

from __future__ import annotations

import struct
import time
import tracemalloc

import gguf
import numpy as np
import pytest
from gguf_bytes import ARRAY, BOOL, STRING, UINT8, UINT32, array, field, gguf_file, tensor, text

from spqt_ti.errors import CheckpointError
from spqt_ti.sources.gguf_file import GgufFile

TWO = [tensor("a", (32,), 0), tensor("b", (32,), 128)]


def _nested(depth: int) -> bytes:
    return array(ARRAY, 1) * depth + array(UINT8, 1, b"\0")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gguf_file([], [tensor("a", (32,), 0), tensor("b", (32,), 96)], bytes(256)), "a and b overlap"),
        (gguf_file([], [tensor("a", (48,), 0), tensor("b", (32,), 128)], bytes(256)), "tensors a and b overlap"),
        (gguf_file([], [tensor("b", (32,), 0), tensor("a", (32,), 0)], bytes(256)), "overlap"),
        (gguf_file([], [tensor("a", (32,), 8)], bytes(256)), "no multiple of 32"),
        (gguf_file([], [TWO[0], tensor("a", (32,), 128)], bytes(256)), "two tensors have the same name"),
        (gguf_file([], [tensor("a", (2**62, 2**62), 0)], bytes(256)), "truncated: tensor a"),
        (gguf_file([], [tensor("a", (0,), 0)], bytes(256)), "has shape"),
        (gguf_file([], [tensor("a", (32,), 0, kind=99)], bytes(256)), "unknown type 99"),
        (gguf_file([], TWO, bytes(256), counts=(2**60, 0)), "tensors, more than"),
        (gguf_file([], TWO, bytes(256), counts=(2, 2**60)), "metadata keys, more than"),
        (gguf_file([field("k", BOOL, b"\1"), field("k", BOOL, b"\0")], TWO, bytes(256)), "key k is there twice"),
        (gguf_file([field("k", STRING, text("x", 2**63))], TWO, bytes(256)), "truncated in the header"),
        (gguf_file([field("k", ARRAY, array(STRING, 2**60))], TWO, bytes(256)), "strings of all arrays"),
        (gguf_file([field("k", ARRAY, array(STRING, 4_000_000))], TWO, bytes(256)), "truncated in the header"),
        (gguf_file([field("k", ARRAY, array(UINT32, 2**62))], TWO, bytes(256)), "truncated in the header"),
        (gguf_file([field("k", ARRAY, array(ARRAY, 2**60))], TWO, bytes(256)), "strings of all arrays"),
        (gguf_file([field("k", ARRAY, _nested(2000))], TWO, bytes(256)), "deeper than 8 levels"),
        (gguf_file([field("k", 77, b"")], TWO, bytes(256)), "unknown type 77"),
        (gguf_file([field("general.alignment", UINT32, bytes(4))], TWO, bytes(256)), "general.alignment is 0"),
        (gguf_file([field("general.alignment", STRING, text("32"))], TWO, bytes(256)), "general.alignment is '32'"),
        (gguf_file([field("split.count", STRING, text("2"))], TWO, bytes(256)), "split.count is '2'"),
        (gguf_file([field("split.tensors.count", ARRAY, array(UINT8, 2, b"aa"))], TWO, bytes(256)), "hold 2 tensors"),
    ],
)  # fmt: skip
def test_refused_at_once(content, words, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        GgufFile.open(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert any(word in str(caught.value) for word in words.split("|")), caught.value
    assert str(path) in str(caught.value)
    assert peak < 20e6
    assert time.perf_counter() - start < 20  # of what would take for ever


def test_text_that_nobody_needs(tmp_path):
    """Latin-1 in a description and in tags, nested arrays, a key in no encoding."""
    fields = [
        field("general.description", STRING, text("affiné".encode("latin-1"))),
        field("general.tags", ARRAY, array(STRING, 1, text(b"\xff\xfe"))),
        field("x.nested", ARRAY, _nested(3)),
        field(b"\xff\x1b[31m", BOOL, b"\1"),
        field("good", STRING, text("naïve")),
    ]
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_file(fields, TWO, bytes(256)))
    file = GgufFile.open(path)
    assert file.metadata["good"] == "naïve"
    assert all(key.isprintable() for key in file.metadata)
    for key, words in (
        ("general.description", "not UTF-8"),
        ("general.tags", "not UTF-8"),
        ("x.nested", "array of arrays"),
    ):
        with pytest.raises(CheckpointError, match=words):
            file.metadata[key]


@pytest.mark.parametrize(
    "name",
    [
        "F32", "F16", "BF16", "F64", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
        "TQ1_0", "TQ2_0", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
        "MXFP4",
    ],
)  # fmt: skip
def test_every_type_that_gguf_dequantises(name, tmp_path):
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    cols = max(block, 32) * 2
    raw = np.random.default_rng(3).integers(0, 256, (5, cols // block * size), dtype=np.uint8)
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_file([], [tensor("w", (cols, 5), 0, kind)], raw.tobytes()))
    got = GgufFile.open(path).load("w")
    with np.errstate(all="ignore"):
        expected = raw.view("<f8").astype(np.float32) if name == "F64" else gguf.quants.dequantize(raw, kind)
    np.testing.assert_array_equal(got, expected)


def _part(number: int, count: int, name: str, total: int = 2) -> bytes:
    fields = [
        field("split.no", 2, struct.pack("<H", number)),
        field("split.count", 2, struct.pack("<H", count)),
        field("split.tensors.count", 5, struct.pack("<i", total)),
    ]
    return gguf_file(fields, [tensor(name, (32,), 0)], np.full(32, number, np.float32).tobytes())


def test_parts(tmp_path):
    first, second = (tmp_path / f"m-{i:05}-of-00002.gguf" for i in (1, 2))
    first.write_bytes(_part(0, 2, "a"))
    with pytest.raises(CheckpointError, match=r"one of 2 parts, but m-00002-of-00002.gguf is not beside it"):
        GgufFile.open(first)
    second.write_bytes(_part(1, 2, "b"))
    file = GgufFile.open(first)
    assert [file.load(name)[0] for name in ("a", "b")] == [0, 1]
    with pytest.raises(CheckpointError, match=r"part 2 of 2; open the first, m-00001-of-00002.gguf"):
        GgufFile.open(second)
    second.write_bytes(_part(1, 2, "a"))
    with pytest.raises(CheckpointError, match=r"tensor a is in m-00001-of-00002\.gguf as well"):
        GgufFile.open(first)
    second.write_bytes(_part(1, 2, "b", 2))
    first.write_bytes(_part(0, 2, "a", 3))
    with pytest.raises(CheckpointError, match="hold 2 tensors, expected 3"):
        GgufFile.open(first)
    first.rename(tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match="one of 2 parts; name it"):
        GgufFile.open(tmp_path / "other.gguf")
