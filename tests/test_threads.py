"""Threads of this process, and of NumPy's BLAS."""

from __future__ import annotations

import numpy as np
import pytest
import threadpoolctl

from spqt_ti.threads import available_threads, blas_threads


def blas() -> list[int]:
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]


def test_blas_is_bounded_inside_and_as_before_outside() -> None:
    np.ones((4, 4)) @ np.ones((4, 4))
    before = blas()
    if not before:
        pytest.skip("this NumPy's BLAS cannot be bounded")
    with blas_threads(1):
        assert set(blas()) == {1}
    assert blas() == before
    assert available_threads() >= 1
