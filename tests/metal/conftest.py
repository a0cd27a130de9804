"""Whether this machine can translate kernels to MSL and run them."""

from __future__ import annotations

import pytest
from metal.translation import missing_tools

from spqt_ti.backend import devices
from spqt_ti.errors import BackendError


@pytest.fixture(scope="session")
def metal_tools() -> None:
    """Skips, with what to install, where something is missing."""
    if reason := missing_tools():
        pytest.skip(reason)
    try:
        devices.find("vulkan")
    except BackendError as error:
        pytest.skip(f"Taichi's SPIR-V code generator needs a Vulkan device: {error}")
