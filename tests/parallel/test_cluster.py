"""Sweeps on Dask: a real scheduler and two workers in processes of their own, one of them killed in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_containers

from spqt_ti.errors import ExecutionError, PolicyError
from spqt_ti.parallel.cluster import DaskCluster
from spqt_ti.parallel.executors import InProcess, Result
from spqt_ti.parallel.study import ModelReference, Request
from spqt_ti.parallel.sweep import sweep

distributed = pytest.importorskip("distributed")
ITEMS = list(range(24))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster.scheduler_address


class KillsOne(DaskCluster):
    """Kills a worker when the third result is there."""

    def run(self, asked: Request, items) -> Iterator[Result]:
        for number, result in enumerate(super().run(asked, items)):
            if number == 2:
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
