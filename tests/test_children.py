"""Children import nothing from the folder that they are started in."""

from __future__ import annotations

import subprocess
import sys

from spqt_ti.children import python_command


def _run(command: list[str], folder) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def test_nothing_of_the_current_folder_runs(tmp_path):
    for name in ("numpy", "json", "runpy", "argparse", "spqt_ti", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\nraise SystemExit(7)\n")
    done = _run(python_command("spqt_ti.cli.main", "--version"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("spqt ")
    assert not (tmp_path / "ran").exists()
    # What this is against.
    assert _run([sys.executable, "-m", "json"], tmp_path).returncode == 7


def test_arguments_arrive(tmp_path):
    done = _run(python_command("spqt_ti.cli.main", "info", "x", "--no-such-option"), tmp_path)
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr
