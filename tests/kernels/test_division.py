"""Which divisions of a GPU's GEMV are worth measuring, and which one is taken without measuring."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spqt_ti.kernels.simt.division import DIVISIONS, Division, candidates, default_division

ANY_GPU = 1024


@given(st.integers(1, 1000), st.integers(1, 60_000))
def test_candidates(bands: int, cols: int) -> None:
    found = candidates(bands, cols, ANY_GPU)
    assert found
    assert set(found) <= set(DIVISIONS)
    for division in found:
        assert division == Division(1, 1) or 8 * division.groups * division.simdgroups <= cols
        assert division.groups == 1 or division.groups * bands <= 2048
    if cols >= 32:
        assert default_division(bands, cols) in found


def test_every_division_of_a_large_matrix() -> None:
    assert candidates(16, 4096, ANY_GPU) == list(DIVISIONS)


@pytest.mark.parametrize(("group", "simdgroups"), [(64, {1, 2}), (128, {1, 2, 4}), (1024, {1, 2, 4})])
def test_candidates_fit_the_device(group: int, simdgroups: set[int]) -> None:
    assert {division.simdgroups for division in candidates(16, 4096, group)} == simdgroups


def test_default_division_shares_long_columns() -> None:
    assert default_division(8, 64).groups == 1
    assert default_division(8, 8192).groups == 32
