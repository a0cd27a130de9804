"""spqt doctor and spqt completion."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess

import numpy as np
import pytest

from spqt_ti import ops
from spqt_ti.benchmark import checkup
from spqt_ti.cli import main as cli


@pytest.fixture
def small(monkeypatch):
    """Bandwidth is measured elsewhere (tests/benchmark)."""
    monkeypatch.setattr(checkup, "read_bandwidth", lambda threads, rounds: 1e9 * threads)


def test_doctor(small, capsys):
    assert cli.main(["doctor", "--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["wrong"] == []
    assert [test["scheme"] for test in report["self_tests"]] == ["q4_k", "q8_0"]
    assert report["versions"]["taichi"] != "not installed"
    assert cli.main(["doctor", "--quick"]) == 0
    text = capsys.readouterr().out
    for part in ("GB/s", "q4_k, zigzag", "right (error ", "cache folder"):
        assert part in text


def test_a_wrong_kernel_is_found(small, capsys, monkeypatch):
    multiply = ops.sparse_gemv
    monkeypatch.setattr(ops, "sparse_gemv", lambda *operands: multiply(*operands) + np.float32(1))
    assert cli.main(["doctor", "--quick"]) == 1
    assert "kernels compute wrong results: q4_k in zigzag layout is off by" in capsys.readouterr().err


def test_advice():
    advice = checkup._advice({"products": False}, tuned=False, load=9.0, threads=2, findings=[])
    assert [words.split()[0] for words in advice][:3] == ["spqt", "kernels", "other"]
    (words,) = checkup._advice({}, tuned=True, load=None, threads=os.cpu_count() or 1, findings=[], slow_blas=True)
    assert words.startswith("OPENBLAS_CORETYPE=SkylakeX")


@pytest.mark.parametrize("architecture", ["Haswell", "SkylakeX"])
def test_a_blas_that_misses_avx512(architecture, monkeypatch):
    monkeypatch.setattr(
        checkup, "threadpool_info", lambda: [{"internal_api": "openblas", "architecture": architecture}]
    )
    monkeypatch.setattr(checkup.native, "cpu_flags", lambda: checkup._AVX512 | {"fma"})
    assert checkup.blas_misses_avx512() == (architecture == "Haswell")
    monkeypatch.setattr(checkup.native, "cpu_flags", lambda: {"fma"})
    assert not checkup.blas_misses_avx512()
    assert dataclasses.is_dataclass(checkup.Checkup)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell, capsys):
    pytest.importorskip("shtab")
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "quantize" in script
    assert "--sparsity" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
