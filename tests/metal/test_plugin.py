"""pytest -p metal.plugin: what it does to a session."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent

LAUNCHING = """\
import numpy as np
import pytest

from metal.emulator import LaunchError
from metal.harness_kernels import SIZE, THREADS, correct, wrong
from spqt_ti.kernels.simt.transfer import upload, zeros
from spqt_ti.backend import ti

pytestmark = pytest.mark.threadgroups


def test_computes(backend_name):
    x, sums, totals = upload(np.arange(SIZE, dtype=np.int32)), zeros(ti.i32, SIZE), zeros(ti.i32, 1)
    correct()["scan"](x, sums, totals, 2)
    expected = 2 * np.arange(SIZE).reshape(-1, THREADS).cumsum(axis=1)
    np.testing.assert_array_equal(sums.to_numpy(), expected.reshape(-1))
    assert totals.to_numpy()[0] == expected[:, -1].sum()


def test_finds_mistakes(backend_name):
    with pytest.raises(LaunchError, match="divergent barrier"):
        wrong()["divergent_atomic"](zeros(ti.i32, 1))
"""

IDLE = """\
import pytest


@pytest.mark.threadgroups
def test_nothing():
    pass
"""


def run(source: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    test = folder / "test_it.py"
    test.write_text(source)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "metal.plugin", "-c", TESTS.parent / "pyproject.toml"]
    command += ["--rootdir", folder, "--confcutdir", folder, "-p", "conftest", *options, test]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=600, check=False
    )  # fmt: skip


def test_kernels_run_as_metal(tmp_path: Path) -> None:
    done = run(LAUNCHING, tmp_path, "--backend", "vulkan", "--keep-msl", "kept")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "metal: 2 launches of 2 kernels (2 tasks). A task has at most 256 of 32768 bytes" in done.stdout
    (msl,) = (tmp_path / "kept").glob("0_scan/*.metal")
    assert "threadgroup_barrier(" in msl.read_text()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--backend", "vulkan"], 1, "metal: nothing was launched"),
        (["--backend", "cpu"], 4, "needs --backend vulkan"),
        (["--backend", "vulkan", "--keep-msl", "."], 4, "--keep-msl: . is there already"),
    ],
    ids=["idle", "cpu", "folder in use"],
)
def test_sessions_that_show_nothing_fail(tmp_path: Path, options: list[str], code: int, message: str) -> None:
    done = run(IDLE, tmp_path, *options)
    assert done.returncode == code
    assert message in done.stdout + done.stderr
