"""Checkpoints: what was saved comes back, and nothing else does."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from spqt_ti.errors import PolicyError
from spqt_ti.sparsity import checkpoint
from spqt_ti.sparsity.capture import Magnitudes
from spqt_ti.sparsity.checkpoint import Checkpoint
from spqt_ti.sparsity.methods.teal import from_arrays  # methods first: they and searches know each other

IDENTITY = {"model": "m", "text": "t", "tokens": 300}
ARRAYS = {"a": np.arange(5), "b.c": np.array(2.5)}


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoint:
    kept = Checkpoint(tmp_path / "new" / "folder", IDENTITY)
    kept.save("search", ARRAYS, seed=3)
    return kept


def test_comes_back(kept: Checkpoint) -> None:
    found = kept.load("search", seed=3)
    assert found is not None
    assert set(found) == set(ARRAYS)
    for name, values in ARRAYS.items():
        np.testing.assert_array_equal(found[name], values)


def test_the_last_one_counts(kept: Checkpoint) -> None:
    kept.save("search", {"a": np.zeros(1)}, seed=3)
    found = kept.load("search", seed=3)
    assert found is not None
    assert list(found) == ["a"]
    assert [file.name for file in kept.folder.iterdir()] == ["search.npz"]


def test_nothing_there(kept: Checkpoint) -> None:
    assert kept.load("other") is None


def test_no_folder_keeps_nothing(tmp_path: Path) -> None:
    nowhere = Checkpoint()
    nowhere.save("search", ARRAYS)
    assert nowhere.load("search") is None


@pytest.mark.parametrize("change", [{"model": "n"}, {"text": "u"}, {"tokens": 299}])
def test_of_another_calibration(kept: Checkpoint, change: dict[str, str | int]) -> None:
    (key,) = change
    with pytest.raises(PolicyError, match=rf"search\.npz: checkpoint of another calibration \({key} is"):
        Checkpoint(kept.folder, IDENTITY | change).load("search", seed=3)


def test_of_another_seed(kept: Checkpoint) -> None:
    with pytest.raises(PolicyError, match=r"seed is 3, not 4"):
        kept.load("search", seed=4)


def test_of_another_format(kept: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    with pytest.raises(PolicyError, match="format is"):
        kept.load("search", seed=3)


@pytest.mark.parametrize("damage", [b"", b"no zip at all", b"PK\x03\x04 cut off"])
def test_damaged(kept: Checkpoint, damage: bytes) -> None:
    (kept.folder / "search.npz").write_bytes(damage)
    with pytest.raises(PolicyError, match="delete it to start again"):
        kept.load("search", seed=3)


@pytest.mark.parametrize("order", ["<", ">"])
def test_characters_that_do_not_exist(kept: Checkpoint, order: str) -> None:
    path = kept.folder / "search.npz"
    text = np.array([0x110000], f"{order}u4").view(f"{order}U1").reshape(())
    np.savez(path, identity=text)
    with pytest.raises(PolicyError, match=r"characters that do not exist.*delete it to start again"):
        kept.load("search", seed=3)


def test_cut_short(kept: Checkpoint) -> None:
    path = kept.folder / "search.npz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(PolicyError, match="delete it to start again"):
        kept.load("search", seed=3)


def test_an_interrupted_save_leaves_the_one_before(kept: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kept.save("search", {"a": np.zeros(9)}, seed=3)
    assert [file.name for file in kept.folder.iterdir()] == ["search.npz"]
    found = kept.load("search", seed=3)
    assert found is not None
    np.testing.assert_array_equal(found["a"], ARRAYS["a"])


def test_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PolicyError, match="cannot be written"):
        Checkpoint(tmp_path / "file", IDENTITY).save("search", ARRAYS)


def _npz(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _npy(header: str, content: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}",  # NumPy's reader allocates 8 TB
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,)}",
        "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (0,)}",
        "(" * 5000,
        "{}",
    ],
)
def test_headers_are_compared_with_the_file(kept: Checkpoint, header: str) -> None:
    _npz(kept.folder / "search.npz", {"a.npy": _npy(header)})
    with pytest.raises(PolicyError, match="not a checkpoint"):
        kept.load("search", seed=3)


def test_compressed_files_are_not_unpacked(kept: Checkpoint) -> None:
    _npz(kept.folder / "search.npz", {"a.npy": bytes(1 << 24)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(PolicyError, match="not a checkpoint"):
        kept.load("search", seed=3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"places": np.array([2**40])}, "bins outside"),
        ({"places": np.array([-1])}, "bins outside"),
        ({"counts": np.array([1, 2])}, r"counts is int64 \[2\]"),
        ({"counts": np.array([-1])}, "negative"),
        ({"done": np.array(-1)}, "negative"),
        ({"done": np.array(1.5)}, "done is float64"),
        ({"done": np.array([1])}, r"done is int64 \[1\]"),
    ],
)
def test_counts_of_no_such_model(kept: Checkpoint, changes: dict[str, np.ndarray], words: str) -> None:
    arrays = {"places": np.array([3]), "counts": np.array([1]), "done": np.array(1)}
    kept.save("capture", arrays | changes)
    with pytest.raises(PolicyError, match=words):
        Magnitudes(1).restore(kept.load("capture"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"0.errors": np.zeros(3)}, "0.errors is"),
        ({"0.effective": np.array([0.5, 0.1])}, "no path"),
        ({"0.sparsities": np.full((2, 4), 2.0)}, "no path"),
        ({"0.sparsities": np.full((2, 4), np.nan)}, "NaN"),
        ({"0.effective": np.array(["a", "b"])}, "0.effective is"),
    ],
)
def test_picks_that_are_none(kept: Checkpoint, changes: dict[str, np.ndarray], words: str) -> None:
    arrays = {"0.effective": np.array([0.0, 0.1]), "0.errors": np.zeros(2), "0.sparsities": np.zeros((2, 4))}
    kept.save("teal", arrays)
    assert len(from_arrays(kept.load("teal"))) == 1
    kept.save("teal", arrays | changes)
    with pytest.raises(PolicyError, match=words):
        from_arrays(kept.load("teal"))
