"""Two processes that start at once on a machine that has nothing yet: both quantise, calibrate and compile."""

from __future__ import annotations

import os
import subprocess

import pytest
from tiny_models import random_weights, tiny_config, write_huggingface

from spqt_ti.backend import requested
from spqt_ti.children import python_command
from spqt_ti.paths import expanded


@pytest.mark.skipif(requested() != "cpu", reason="kernels are compiled into the same cache on every backend")
def test_the_first_use_of_a_model_by_two_processes(tmp_path) -> None:
    config = tiny_config()
    source = write_huggingface(tmp_path / "source", config, random_weights(config))
    cache = expanded(tmp_path / "cache")
    command = python_command(
        "spqt_ti.cli.main", "generate", str(source), "hello", "--raw", "--max-new-tokens", "6", "--sparsity", "0.5",
        "--threads", "1", "--context", "64",
    )  # fmt: skip
    processes = [
        subprocess.Popen(
            command, env={**os.environ, "SPQT_CACHE_DIR": str(cache)}, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    results = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0][0] == results[1][0] != ""
    containers = list((cache / "quantized").iterdir())
    assert len(containers) == 1, "nothing half-finished is left"
