"""Arrays that may be damaged or hostile."""

from __future__ import annotations

import io

import numpy as np
import pytest

from spqt_ti.bounded_npy import read_array


def written(values: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, values, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "values",
    [np.arange(6).reshape(2, 3), np.asfortranarray(np.ones((2, 3), ">f4")), np.array("né"), np.array(2.5), np.zeros(0)],
    ids=lambda values: str(values.dtype),
)
def test_round_trip(values: np.ndarray) -> None:
    found = read_array(io.BytesIO(written(values)))
    assert (found.dtype, found.shape) == (values.dtype, values.shape)
    np.testing.assert_array_equal(found, values)


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "damaged header"),
        (b"PK\x03\x04", "damaged header"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (10**12,)}"), "damaged header"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999,)}") + bytes(8), "header says"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1)}") + bytes(8), "header says"),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + bytes(8), "header says"),
        (header("{'descr': '<U1', 'fortran_order': False, 'shape': ()}") + b"\xff" * 4, "do not exist"),
        (header("{'descr': '<U0', 'fortran_order': False, 'shape': (9,)}"), "no size"),
        (written(np.array([None]), allow_pickle=True), "header says"),
        (written(np.arange(4))[:-1], "header says"),
        (written(np.arange(4)) + b"x", "header says"),
    ],
)
def test_what_is_no_array(raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_array(io.BytesIO(raw))
