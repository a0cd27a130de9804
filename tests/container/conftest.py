"""Containers that the tests of this folder share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from container_files import (
    tensors,
    write,
)

from spqt_ti.container import (
    Container,
)
from spqt_ti.formats import layout as layouts


@pytest.fixture(scope="session")
def stored(tmp_path_factory) -> dict[str, Container]:
    """One container per layout; not to be changed."""
    folder = tmp_path_factory.mktemp("containers")
    return {layout: write(folder / layout, tensors(layout), layout=layout) for layout in layouts.LAYOUTS}


@pytest.fixture
def copy(stored, tmp_path) -> Path:
    """A zigzag container to damage."""
    return Path(shutil.copytree(stored["zigzag"].path, tmp_path / "copy"))
