"""AVX2's 16-bit products are those of AVX-512 VNNI, bit for bit: sums of whole numbers, rounded alike."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scheme_matrices
from q4_k_matrices import random_matrix

from spqt_ti.backend import start
from spqt_ti.formats import schemes
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.gemv import ZigzagGemv
from spqt_ti.kernels.cpu.row_gemv import RowGemv
from spqt_ti.kernels.cpu.schemes import decoder_of
from spqt_ti.kernels.cpu.zigzag import ZigzagShape


def products() -> np.ndarray:
    """Full bands and a tail, dense and sparse; another scheme; rows; five tokens of a prompt. One after the other."""
    start("cpu")
    rng = np.random.default_rng(1)
    x, active = rng.standard_normal(301, dtype=np.float32), np.arange(1, 301, 2, dtype=np.int32)
    found = []
    for rows in (700, 300):  # full bands alone; one and a tail
        gemv = ZigzagGemv(random_matrix(rows, 301, "zigzag").data, ZigzagShape(rows, 301), 1)
        found += [gemv(x), gemv(x, active), gemv(x * np.where(np.arange(301) == 7, np.float32(25_000), np.float32(1)))]
    q6_k = schemes.find("q6_k")
    matrix = scheme_matrices.random_matrix(300, 301, "zigzag", q6_k)
    found.append(ZigzagGemv(matrix.data, ZigzagShape(300, 301), 1, decoder=decoder_of(q6_k))(x))
    found.append(RowGemv(random_matrix(20, 301, "row").data, 20, 301, 1)(x))
    multiply = runpy.run_path(str(Path(__file__).with_name("test_matmul.py")))["multiply"]
    for rows in (256, 300):
        tokens = rng.standard_normal((5, 301), dtype=np.float32)
        found.append(multiply(random_matrix(rows, 301, "zigzag").data, rows, tokens, 1, exact=False))
    return np.concatenate([y.reshape(-1) for y in found])


def _print_products() -> None:
    """Run in a process of its own."""
    assert native.products_by() == "x86_64_avx2"
    sys.stdout.buffer.write(products().tobytes())


@pytest.mark.skipif(
    native.products_by() != "x86_64_vnni", reason="this CPU has no AVX-512 VNNI, or SPQT_NATIVE leaves it out"
)
def test_avx2_gives_the_bits_of_vnni() -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; import runpy; runpy.run_path({__file__!r})['_print_products']()"
    env = {**os.environ, "SPQT_NATIVE": "avx2"}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    y = np.frombuffer(done.stdout, np.float32)
    np.testing.assert_array_equal(y.view(np.uint32), products().view(np.uint32))


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the CPU's flags: AVX-512 VNNI before AVX2, neither without FMA; SPQT_NATIVE leaves out."""
    avx2 = {"avx2", "fma", "f16c"}
    vnni = avx2 | {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"}
    monkeypatch.setattr(native.sys, "platform", "linux")
    monkeypatch.setattr(native.platform, "machine", lambda: "x86_64")
    for flags, wanted, expected in (
        (vnni, "1", "x86_64_vnni"), (vnni, "avx2", "x86_64_avx2"), (vnni, "fma", None), (vnni, "0", None),
        (avx2, "1", "x86_64_avx2"), (vnni - {"avx512vl"}, "1", "x86_64_avx2"), (avx2 - {"avx2"}, "1", None),
        (avx2 - {"fma"}, "1", None),
    ):  # fmt: skip
        monkeypatch.setattr(native, "cpu_flags", lambda flags=flags: frozenset(flags))
        monkeypatch.setenv("SPQT_NATIVE", wanted)
        assert native.products_by() == expected, (flags, wanted)
