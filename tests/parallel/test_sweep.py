"""Sweeps here and in local processes: the same bits, errors as they are, and nothing done twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_containers

from spqt_ti.errors import ExecutionError, PolicyError
from spqt_ti.parallel import results
from spqt_ti.parallel.executors import InProcess, LocalProcesses, processes_for
from spqt_ti.parallel.study import ModelReference, Request, key_of
from spqt_ti.parallel.sweep import sweep

ITEMS = list(range(5))


def request(study: str, **settings: object) -> Request:
    return Request(f"toy_studies:{study}", ModelReference.of(tiny_containers.container("gqa")), settings)


def sums(log: Path) -> Request:
    return request("Sums", seconds=0, log=str(log))


def test_processes_give_the_same_bits_and_errors(tmp_path: Path) -> None:
    here = sweep(InProcess(), sums(tmp_path), ITEMS)
    there = sweep(LocalProcesses(2), sums(tmp_path), ITEMS)
    assert [r.tobytes() for r in here] == [r.tobytes() for r in there]
    assert len({tuple(r) for r in here}) == len(ITEMS)


def test_errors_of_a_study_pass_through() -> None:
    with pytest.raises(PolicyError, match="item 3 is no good"):
        sweep(LocalProcesses(1), request("Fails"), [3])


def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    found = sweep(LocalProcesses(1), request("Dies", once=str(tmp_path / "died")), [1, 2])
    assert [r.tolist() for r in found] == [[1.0], [2.0]]


def test_goes_on_where_it_was(tmp_path: Path) -> None:
    """Interrupted after two items, asked for more: the rest alone is evaluated, and equal items once."""

    class Interrupted(InProcess):
        def run(self, asked: Request, items):
            for number, result in enumerate(super().run(asked, items)):
                if number == 2:
                    raise KeyboardInterrupt
                yield result

    log, kept = tmp_path / "log", tmp_path / "kept.json"
    log.mkdir()
    with pytest.raises(KeyboardInterrupt):
        sweep(Interrupted(), sums(log), ITEMS, kept)
    before = len(list(log.iterdir()))
    found = sweep(InProcess(), sums(log), [*ITEMS, 7, 7, 0], kept)
    assert len(list(log.iterdir())) - before == 4
    assert [r.tobytes() for r in found] == [r.tobytes() for r in sweep(InProcess(), sums(log), [*ITEMS, 7, 7, 0])]


def test_results_of_something_else_are_refused(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    results.save(kept, sums(tmp_path), {key_of(1): np.array([0.1, 1e-300])})
    assert results.load(kept, sums(tmp_path))[key_of(1)].tolist() == [0.1, 1e-300]
    with pytest.raises(ExecutionError, match="another model, text or setting"):
        results.load(kept, sums(tmp_path / "elsewhere"))
    for damage in ("{", json.dumps({"format": 2}), json.dumps({"format": 1, "results": {"1": ["x"]}})):
        kept.write_text(damage)
        with pytest.raises(ExecutionError, match="delete it to start again"):
            results.load(kept, sums(tmp_path))


def test_a_worker_without_the_model(tmp_path: Path) -> None:
    """By path, else by its fingerprint in a shared folder; another model at the path is not taken for it."""
    container, other = tiny_containers.container("gqa"), tiny_containers.container("gqa", layout="row")
    shared = tmp_path / "shared"
    reference = ModelReference(str(other.path), container.fingerprint, str(shared))
    with pytest.raises(ExecutionError, match=f"is model {other.fingerprint}.*--shared"):
        reference.open()
    shared.mkdir()
    (shared / container.fingerprint).symlink_to(container.path)
    assert reference.open().fingerprint == container.fingerprint


def test_processes_are_as_many_as_memory_allows(monkeypatch) -> None:
    monkeypatch.setattr("spqt_ti.parallel.executors.available_threads", lambda: 8)
    monkeypatch.setattr("spqt_ti.parallel.executors.available_memory", lambda: 10 << 30)
    assert [processes_for(size << 30) for size in (0, 1, 2, 20)] == [8, 6, 3, 1]
