"""What the benchmarks are measured against: how fast this machine reads memory, in the same session."""

import pytest

from spqt_ti.backend import start
from spqt_ti.benchmark import bandwidth


@pytest.fixture(scope="session")
def read_bandwidth() -> float:
    """Bytes per second at which all workers together read memory in order: the ceiling of a GEMV on cold weights."""
    return bandwidth.read_bandwidth(start("cpu").threads)
