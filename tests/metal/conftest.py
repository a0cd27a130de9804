"""Tests of the harness run where Taichi's SPIR-V code generator does: with --backend vulkan."""

from __future__ import annotations

from pathlib import Path

import pytest
from metal.translation import missing_tools

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    elsewhere = config.getoption("--backend") not in ("cpu", "vulkan")
    problem = "SPIR-V is compiled with --backend vulkan" if elsewhere else missing_tools()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.threadgroups)
            if problem:
                item.add_marker(pytest.mark.skip(reason=problem))


@pytest.fixture(scope="session", autouse=True)
def _runtime(backend_name: str) -> None:
    """The backend, started."""
