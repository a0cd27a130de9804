"""Which divisions of a GPU's GEMV are worth measuring, and which one is taken without measuring."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spqt_ti.kernels.simt.division import DIVISIONS, MOST_GROUPS, Division, candidates, default_division

ANY_GPU = 1024


@given(st.integers(1, 1000), st.integers(1, 60_000), st.none() | st.integers(1, 200))
def test_candidates(bands: int, cols: int, processors: int | None) -> None:
    found, default = candidates(bands, cols, ANY_GPU, processors), default_division(bands, cols, processors)
    assert found.count(default) == 1
    assert set(found) <= {*DIVISIONS, default}
    for division in found:
        assert division == default or 8 * division.groups * division.simdgroups <= cols
        assert division == default or division.groups == 1 or division.groups * bands <= 2048


@given(st.integers(1, 1000), st.integers(1, 60_000), st.none() | st.integers(1, 200))
def test_default_division(bands: int, cols: int, processors: int | None) -> None:
    """Can be parsed, and leaves no simdgroup without columns."""
    division = default_division(bands, cols, processors)
    assert Division.parse(str(division)) == division
    assert division.groups == 1 or 8 * division.groups * division.simdgroups <= cols


def test_every_division_of_a_large_matrix() -> None:
    assert candidates(16, 4096, ANY_GPU) == list(DIVISIONS)


@pytest.mark.parametrize(("group", "simdgroups"), [(128, {2, 4}), (1024, {2, 4, 8})])
def test_candidates_fit_the_device(group: int, simdgroups: set[int]) -> None:
    assert {division.simdgroups for division in candidates(16, 4096, group)} == simdgroups


def test_default_division_shares_long_columns() -> None:
    assert default_division(8, 64).groups == 1
    assert default_division(8, 8192).groups == 32


@pytest.mark.parametrize(("bands", "cols", "groups"), [(16, 4096, 16), (24, 4096, 11), (112, 4096, 2), (16, 14336, 16)])
def test_groups_that_run_side_by_side(bands: int, cols: int, groups: int) -> None:
    """On 132 processors, which have 264: as many as fit, and not one more."""
    assert default_division(bands, cols, 132) == Division(groups, 8)


@pytest.mark.parametrize("text", ["", "0x4", "8x0", "8x3", "8x16", f"{MOST_GROUPS + 1}x4", "8", "8x4x1", "-1x4", "8X4"])
def test_what_is_no_division(text: str) -> None:
    with pytest.raises(ValueError, match=r"a division must be threadgroups x simdgroups, .* not"):
        Division.parse(text)
