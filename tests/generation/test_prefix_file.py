"""The KV cache in a file: never another answer than without it, and nothing that does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_containers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from spqt_ti.backend import requested
from spqt_ti.errors import GenerationError
from spqt_ti.generation.prefix_file import load_prefix, save_prefix
from spqt_ti.model.runner import Llama

pytestmark = pytest.mark.any_backend
MODEL = "0123abcd"


@pytest.fixture(scope="module", params=[True, False], ids=["f32", "f16"])
def llama(request: pytest.FixtureRequest) -> Llama:
    """With keys and values of both widths."""
    if not request.param and requested() != "cpu":
        pytest.skip("GPUs keep f32 alone")
    return tiny_containers.llama("gqa", threads=1, exact=request.param)


@pytest.fixture
def file(llama: Llama, tmp_path: Path) -> Iterator[Path]:
    """A saved prefix of 20 tokens."""
    llama.reset()
    llama.prefill(np.arange(5, 25))
    path = tmp_path / "prefix.safetensors"
    assert save_prefix(llama, MODEL, path) == 20
    yield path
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # nothing half-written is left


def forget(llama: Llama) -> None:
    """As a new process has it: other numbers everywhere."""
    llama.reset()
    llama.prefill(np.full(llama.context - 1, 99))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bits_are_those_without_it(llama: Llama, tmp_path: Path, data: st.DataObject) -> None:
    """Any prompt, any part of it saved, in two launches or one, and dense or sparse tokens after it."""
    ids = st.integers(3, 250)
    prompt = data.draw(st.lists(ids, min_size=1, max_size=56))
    saved = data.draw(st.integers(1, len(prompt)))
    other = data.draw(st.lists(ids, max_size=3))  # the saved prompt goes on differently
    answer = data.draw(st.lists(ids, max_size=4))
    llama.thresholds[:] = data.draw(st.sampled_from([0.0, 0.3]))

    def rest(kept: int) -> list[bytes]:
        return [llama.prefill(prompt[kept:])[0].tobytes(), *(llama.decode(token).tobytes() for token in answer)]

    forget(llama)
    llama.reset()
    expected = rest(0)
    path = tmp_path / "prefix.safetensors"
    llama.reset()
    llama.prefill(prompt[: saved // 2 + 1])
    llama.prefill(other) if other else None
    llama.rewind(prompt[:saved])
    llama.prefill(prompt[llama.position : saved])
    count = save_prefix(llama, MODEL, path)
    forget(llama)
    assert load_prefix(llama, MODEL, path) == count >= saved
    kept = llama.rewind(prompt)
    assert kept >= min(saved, len(prompt) - 1)
    assert rest(kept) == expected
    llama.thresholds[:] = 0


def test_another_model_or_way_to_run_it(llama: Llama, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GenerationError, match=r"prefix\.safetensors: the prefix is of another model; remove the file"):
        load_prefix(llama, "4567", file)
    for name, value in (("threads", 7), ("context", 4096), ("exact", "maybe"), ("device", "another CPU")):
        with monkeypatch.context() as patch:
            patch.setattr(llama, name, value)
            with pytest.raises(GenerationError, match=f"the prefix is of {name} .*, and this is {name} {value}"):
                load_prefix(llama, MODEL, file)
    monkeypatch.setenv("SPQT_NATIVE", "another")
    with pytest.raises(GenerationError, match=r"of helpers .* this is helpers another"):
        load_prefix(llama, MODEL, file)


def contents(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with safe_open(file, framework="numpy") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata())  # noqa: SIM118


def test_hostile_files(llama: Llama, file: Path) -> None:
    """Cut, empty, no safetensors, a flipped bit, other tensors; with a right digest, wrong shapes and numbers."""
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for raw in (b"", whole[:50], whole[:-1], b"\xff" * 64, b"\2" + bytes(7) + b"{}", bytes(flipped)):
        file.write_bytes(raw)
        with pytest.raises(GenerationError, match=r"prefix\.safetensors: (cannot be read|damaged|not a prefix)"):
            load_prefix(llama, MODEL, file)
    file.write_bytes(whole)
    tensors, metadata = contents(file)
    for name, value in (
        ("tokens", np.full(20, 10**6, np.int32)),
        ("tokens", np.arange(19, dtype=np.int32)),
        ("tokens", np.arange(3 * 20, dtype=np.float32).reshape(3, 20)),
        ("keys", tensors["keys"][:, :, :, :-1]),
        ("keys", tensors["keys"].astype(np.float64)),
        ("values", np.full_like(tensors["values"], np.nan)),
    ):
        changed = {**tensors, name: np.ascontiguousarray(value)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("spqt_ti.generation.prefix_file._digest", lambda prefix: metadata["sha256"])
            save_file(changed, file, metadata)
            with pytest.raises(GenerationError, match=r"prefix\.safetensors: damaged: "):
                load_prefix(llama, MODEL, file)
    del tensors["keys"]
    save_file(tensors, file, metadata)
    with pytest.raises(GenerationError, match="damaged: it holds"):
        load_prefix(llama, MODEL, file)
    save_file(tensors, file)
    with pytest.raises(GenerationError, match="not a prefix that this version saves"):
        load_prefix(llama, MODEL, file)
    file.unlink()
    file.mkdir()
    with pytest.raises(GenerationError, match=r"prefix\.safetensors: cannot be read"):
        load_prefix(llama, MODEL, file)


def test_nothing_to_save_and_no_place(llama: Llama, tmp_path: Path) -> None:
    list(llama.layers(llama.embed([5, 6]), 0))
    with pytest.raises(GenerationError, match="no prompt has been computed yet"):
        save_prefix(llama, MODEL, tmp_path / "prefix")
    llama.reset()
    llama.prefill([5, 6])
    with pytest.raises(GenerationError, match="the prefix cannot be written"):
        save_prefix(llama, MODEL, tmp_path / "none" / "prefix")
