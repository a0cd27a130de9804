"""Folders whose content is run or believed later belong to the user alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from spqt_ti import backend, cache

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="no Unix permissions here")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPQT_CACHE_DIR", str(tmp_path / "deep" / "cache"))
    return tmp_path / "deep" / "cache"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_is_made_private(folder: Path) -> None:
    assert cache.private_folder("kernels") == folder / "kernels"
    assert [mode(path) for path in (folder, folder / "kernels")] == [0o700, 0o700]
    assert cache.private_folder("kernels").is_dir()


def test_an_open_one_is_closed(folder: Path) -> None:
    (folder / "models").mkdir(parents=True)
    (folder / "models").chmod(0o777)
    assert mode(cache.private_folder("models")) == 0o700


def test_somebody_else_s_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "kernels").mkdir(parents=True)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError, match=r"another user.*SPQT_CACHE_DIR"):
        cache.private_folder("kernels")
    assert folder not in backend._compiled_kernels().parents  # compiled anew rather than taken from there


def test_compiled_kernels_are_private(folder: Path) -> None:
    compiled = backend._compiled_kernels()
    assert compiled.parent == folder / "kernels"
    assert mode(compiled.parent) == 0o700
