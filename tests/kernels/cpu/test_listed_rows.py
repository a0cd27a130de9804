"""Rows of a product that a list has: bit for bit those of the whole product, whose tests say that it is right."""

import functools

import numpy as np
import pytest
from device_vectors import download, upload
from hypothesis import given, settings
from hypothesis import strategies as st
from q4_k_matrices import random_matrix

from spqt_ti.backend import address, ndarray, start, ti
from spqt_ti.kernels.cpu.row_gemv import RowGemv, make_listed_rows
from spqt_ti.kernels.cpu.row_layout import ROW_VECTORS, ListedRows, RowInputs, RowMatrix, row_superblocks
from spqt_ti.kernels.cpu.vectors import array_of, f32x16, i64x2, u32x4, u32x16


@pytest.fixture(scope="module", autouse=True)
def _runtime():
    start("cpu")


@functools.cache
def make_kernel():
    order_x, listed_rows = make_listed_rows()

    @ti.kernel
    def kernel(
        quants: array_of(u32x16), headers: array_of(u32x4), addresses: i64x2,
        superblocks: ti.i32, x: array_of(f32x16), rows: array_of(ti.i32), count: ti.i32, offset: ti.i32,
        scratch: array_of(f32x16), y: array_of(f32x16),
    ):  # fmt: skip
        ti.loop_config(block_dim=1, serialize=True)
        for _ in range(1):
            quants_address, headers_address = addresses[0], addresses[1]
            per_row, listed, plus = superblocks, count, offset
            matrix = ti.static(RowMatrix(quants, 0, headers, 0, quants_address, headers_address, 0, per_row))
            order_x(ti.static(RowInputs(x, 0, 0.0)), per_row, scratch, 0)
            listed_rows(matrix, scratch, 0, ti.static(ListedRows(rows, 0, listed, plus)), y, 1)

    return kernel


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 90), st.sampled_from([1, 255, 257, 2600, 4097]), st.integers(0, 2**32 - 1), st.data())
def test_equals_the_whole_product(total: int, cols: int, seed: int, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, total // 2))
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, total - offset - 1)))), np.int32)
    gemv = RowGemv(random_matrix(total, cols, "row", seed).data, total, cols, workers=1)
    whole = gemv(np.random.default_rng(seed).standard_normal(cols).astype(np.float32))
    rows = ndarray(ti.i32, (chosen.size + 1,))
    rows.from_numpy(np.append(chosen, 0).astype(np.int32))
    y = upload(np.full((2 + -(-chosen.size // 16), 16), np.nan, np.float32), f32x16)
    scratch = ndarray(f32x16, (row_superblocks(cols) * ROW_VECTORS,))
    addresses = [address(gemv._quants), address(gemv._headers)]
    make_kernel()(
        gemv._quants, gemv._headers, addresses, row_superblocks(cols), gemv._x, rows, chosen.size, offset, scratch, y
    )  # fmt: skip
    got = download(y).reshape(-1)
    np.testing.assert_array_equal(got[16 : 16 + chosen.size], whole[chosen + offset])
    end = 16 + -(-chosen.size // 16) * 16
    assert (got[16 + chosen.size : end] == 0).all()
    assert np.isnan(got[:16]).all()
    assert np.isnan(got[end:]).all()
