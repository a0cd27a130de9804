"""Reasons to skip that several test files share."""

import pytest

from spqt_ti.kernels.cpu import native

sixteen_bits = pytest.mark.skipif(
    native.products_by() is None,
    reason="no 16-bit products here: this CPU has no AVX2, or SPQT_NATIVE leaves it out",
)

# In f32, and in 16 bits where that is another kernel.
both = pytest.mark.parametrize("exact", [True, pytest.param(False, marks=sixteen_bits)], ids=["f32", "16 bits"])
