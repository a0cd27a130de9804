"""The drawings of docs/design.md: their orders are the package's, and the script runs."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from spqt_ti.kernels.cpu.schemes import q4_k
from spqt_ti.kernels.cpu.zigzag import unpack
from spqt_ti.kernels.shared.geometry import ZigzagShape

SCRIPT = Path(__file__).parents[2] / "bench" / "drawings.py"


@pytest.fixture(scope="module")
def drawings() -> dict:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[plot]'")
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize("bands", [1, 4, 33, 50])
def test_orders(drawings: dict, bands: int) -> None:
    """The quants of a superblock go from its place in a container to its place on the device."""
    shape = ZigzagShape(bands * 256, 3)
    stored = np.zeros((bands * 3, 144), np.uint8)
    stored[:, 16:20] = np.arange(bands * 3, dtype="<u4")[:, None].view(np.uint8)
    quants, _, _ = unpack(stored.reshape(-1), shape, q4_k.DECODER)
    names = list(drawings["stored_order"](shape))
    assert [names[number] for number in quants[::2, 0]] == list(drawings["panel_order"](shape))


def test_writes_three_files(drawings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["drawings.py", "--folder", str(tmp_path / "plots")])
    drawings["main"]()
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"layouts.svg", "panels.svg", "token.svg"}
