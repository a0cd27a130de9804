"""Sweeps on Dask: a real scheduler and two workers in processes of their own, one of them killed in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_containers

from spqt_ti.errors import ExecutionError, PolicyError
from spqt_ti.evaluation.studies import TEXT_SCORES, policy_item
from spqt_ti.parallel.cluster import DaskCluster
from spqt_ti.parallel.executors import InProcess, Result
from spqt_ti.parallel.study import ModelReference, Request
from spqt_ti.parallel.sweep import sweep
from spqt_ti.sparsity.allocate.studies import BUDGETS as SPARSE
from spqt_ti.sparsity.allocate.studies import CHANNELS as PRUNED
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.sparsity.search.swept import BUDGET_COSTS, WINDOW_MAGNITUDES

distributed = pytest.importorskip("distributed")
ITEMS = list(range(24))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster.scheduler_address


class KillsOne(DaskCluster):
    """Kills a worker when the second result is there."""

    killed = 0

    def run(self, asked: Request, items) -> Iterator[Result]:
        for number, result in enumerate(super().run(asked, items)):
            if number == 1:
                self.killed = min(self._client.run(os.getpid).values())
                os.kill(self.killed, signal.SIGKILL)
            yield result


def test_a_worker_killed_in_the_middle_changes_nothing(address: str, tmp_path: Path) -> None:
    """The same bits as here; the results kept on the way serve a second sweep."""
    log, kept = tmp_path / "log", tmp_path / "kept.json"
    log.mkdir()
    asked = Request(
        "toy_studies:Sums", ModelReference.of(tiny_containers.container("gqa")), {"seconds": 0.05, "log": str(log)}
    )
    cluster = KillsOne(address)
    found = sweep(cluster, asked, ITEMS, kept)
    workers = {name.name.split("-")[1] for name in log.iterdir()}
    assert len(workers) >= 2
    assert str(cluster.killed) in workers
    assert sorted({int(name.name.split("-")[0]) for name in log.iterdir()}) == ITEMS
    done = len(list(log.iterdir()))
    assert [r.tobytes() for r in sweep(cluster, asked, ITEMS, kept)] == [r.tobytes() for r in found]
    assert len(list(log.iterdir())) == done
    cluster.close()
    assert [r.tobytes() for r in sweep(InProcess(), asked, ITEMS)] == [r.tobytes() for r in found]


WINDOWS = np.random.default_rng(3).integers(0, 300, (3, 30)).tolist()
THRESHOLDS = np.random.default_rng(4).uniform(0.2, 0.5, (2, 3, 4)).tolist()
BUDGETED: dict[str, Any] = {"windows": WINDOWS, "thresholds": THRESHOLDS}
ALPHAS = [[0.0, 0.5, 0.0, 1.0]] * 2
# Name -> study, settings, items; one worker more is started for each, so that the like of another is slow.
STUDIES: dict[str, tuple[str, dict[str, Any], list[Any]]] = {
    "pruned channels": (
        PRUNED, {"windows": WINDOWS, "calibration": WINDOWS}, [[[layer, 1, r]] for layer in (0, 1) for r in (0.2, 0.6)],
    ),
    "sparse layers": (SPARSE, BUDGETED, [[[layer, 1, level]] for layer in (0, 1) for level in (0, 1, 2)]),
    "individuals": (
        BUDGET_COSTS, {**BUDGETED, "zero": 0, "alphas": ALPHAS},
        [[[a, b], [0, 1], [0, 0]] for a in (0, 1) for b in range(3)],
    ),
    "calibration windows": (
        WINDOW_MAGNITUDES, {"longest": 30, "alphas": ALPHAS},
        np.random.default_rng(5).integers(0, 300, (6, 30)).tolist(),
    ),
    "perplexity": (TEXT_SCORES, {"windows": WINDOWS, "reference": None}, []),
}  # fmt: skip
SLOW = ("sparse layers", "calibration windows")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in STUDIES])
def test_every_study_of_the_product(name: str, address: str, tmp_path: Path) -> None:
    """With a worker killed after the second result, and gone on with in this process: the bits of this process."""
    study, settings, items = STUDIES[name]
    container = tiny_containers.container("gqa")
    if name == "perplexity":
        items = [None, *(policy_item(policy(tmp_path / f"{i}.json", i)) for i in range(5))]
    asked, kept = Request(study, ModelReference.of(container), {**settings, "threads": 1}), tmp_path / "kept.json"
    cluster = KillsOne(address)
    first = sweep(cluster, asked, items[:-1], kept)
    cluster.close()
    assert cluster.killed
    here = sweep(InProcess(), asked, items)
    assert [r.tobytes() for r in sweep(InProcess(), asked, items, kept)] == [r.tobytes() for r in here]
    assert [r.tobytes() for r in first] == [r.tobytes() for r in here[:-1]]


def policy(path: Path, seed: int) -> Path:
    """A policy of the container, written."""
    thresholds = np.random.default_rng(seed).uniform(0.3, 0.6, (2, 4)).astype(np.float32)
    SparsityPolicy("x", 0.5, thresholds, tiny_containers.container("gqa").fingerprint).save(path)
    return path


def test_errors_reach_the_caller(address: str, tmp_path: Path) -> None:
    """A study's as it is; a worker that lacks the model names its machine."""
    cluster = DaskCluster(address)
    model = ModelReference.of(tiny_containers.container("gqa"))
    with pytest.raises(PolicyError, match="item 3 is no good"):
        sweep(cluster, Request("toy_studies:Fails", model), [3])
    with pytest.raises(ExecutionError, match="does not have model"):
        sweep(cluster, Request("toy_studies:Fails", ModelReference(str(tmp_path), "0" * 16)), [3])
    cluster.close()


def test_no_scheduler(monkeypatch) -> None:
    monkeypatch.setattr("spqt_ti.parallel.cluster._TIMEOUT", 0.2)
    with pytest.raises(ExecutionError, match=r"127\.0\.0\.1:9: no Dask scheduler answers"):
        DaskCluster("tcp://127.0.0.1:9")
