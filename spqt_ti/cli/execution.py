"""--jobs, --cluster and --shared: where independent evaluations run."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from spqt_ti.cli import options

if TYPE_CHECKING:
    from spqt_ti.container import Container
    from spqt_ti.parallel.executors import Executor


def add_execution(parser: options.Adder, title: str = "where evaluations run") -> None:
    """The three options."""
    group = parser.add_argument_group(title)
    group.add_argument(
        "--jobs", type=options.count, metavar="N",
        help="processes of this machine, one thread each (default: as many as CPUs and free memory allow)",
    )  # fmt: skip
    group.add_argument(
        "--cluster", metavar="ADDRESS", help="the workers of a Dask scheduler, tcp://HOST:PORT (extra `cluster`)"
    )
    group.add_argument(
        "--shared", metavar="DIR",
        help="folder that the workers see, with the quantised model under its fingerprint (default: at its own path)",
    )  # fmt: skip


@contextlib.contextmanager
def executor_of(arguments: argparse.Namespace, container: Container) -> Iterator[Executor]:
    """The executor that the options ask for. ExecutionError where it cannot be had, or both kinds are asked for."""
    from spqt_ti.errors import ExecutionError
    from spqt_ti.parallel.executors import InProcess, LocalProcesses, processes_for

    if arguments.cluster is not None:
        if arguments.jobs is not None:
            raise ExecutionError("give --jobs or --cluster, not both")
        from spqt_ti.parallel.cluster import DaskCluster

        cluster = DaskCluster(arguments.cluster)
        try:
            yield cluster
        finally:
            cluster.close()
        return
    size = sum(matrix.nbytes for matrix in container.matrices.values())
    jobs = arguments.jobs or processes_for(size)
    if jobs == 1:
        yield InProcess()
        return
    with contextlib.closing(LocalProcesses(jobs)) as processes:
        yield processes
