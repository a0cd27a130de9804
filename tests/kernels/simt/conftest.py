"""All tests in this folder run on the GPU backend that --backend names."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.threadgroups)


@pytest.fixture(scope="session", autouse=True)
def _runtime(backend_name: str) -> None:
    """The backend, started."""
