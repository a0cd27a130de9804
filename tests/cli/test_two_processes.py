"""Two processes at once: on a machine that has nothing yet, where both quantise, calibrate and compile; and two that
write the same file.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tiny_models import random_weights, tiny_config, write_huggingface

from spqt_ti.backend import requested
from spqt_ti.children import python_command
from spqt_ti.convert.quantize import quantize
from spqt_ti.paths import expanded
from spqt_ti.sparsity.policy import SparsityPolicy


def twice_at_once(command: list[str], folder: Path, environment: dict[str, str]) -> list[tuple[str, str]]:
    """stdout and stderr of both; each has to succeed."""
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **environment}, cwd=folder, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    results = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    return results


@pytest.mark.skipif(requested() != "cpu", reason="kernels are compiled into the same cache on every backend")
def test_the_first_use_of_a_model_by_two_processes(tmp_path) -> None:
    config = tiny_config()
    source = write_huggingface(tmp_path / "source", config, random_weights(config))
    cache = expanded(tmp_path / "cache")
    command = python_command(
        "spqt_ti.cli.main", "generate", str(source), "hello", "--raw", "--max-new-tokens", "6", "--sparsity", "0.5",
        "--threads", "1", "--context", "64",
    )  # fmt: skip
    results = twice_at_once(command, tmp_path, {"SPQT_CACHE_DIR": str(cache)})
    assert results[0][0] == results[1][0] != ""
    containers = list((cache / "quantized").iterdir())
    assert len(containers) == 1, "nothing half-finished is left"


@pytest.mark.skipif(requested() != "cpu", reason="nothing of this is a backend's")
def test_two_calibrations_to_one_file(tmp_path) -> None:
    config = tiny_config()
    source = write_huggingface(tmp_path / "source", config, random_weights(config))
    model = quantize(source, tmp_path / "model", progress=False)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    command = python_command(
        "spqt_ti.cli.main", "calibrate", str(model.path), "--method", "teal", "--sparsity", "0.5", "--tokens", "512",
        "--text", "text.txt", "-o", "out.json", "--threads", "1",
    )  # fmt: skip
    twice_at_once(command, tmp_path, {})
    assert SparsityPolicy.load(tmp_path / "out.json").model == model.fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {"source", "model", "text.txt", "out.json"}
