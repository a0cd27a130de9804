"""`spqt bench gemv`: every kernel is run and reported; what the launches compute is what their kernels do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from spqt_ti.backend import host_view
from spqt_ti.benchmark import gemv, gemv_drivers
from spqt_ti.cli.main import main
from spqt_ti.formats import layout
from spqt_ti.formats.schemes import find
from spqt_ti.kernels.cpu.gemv import ZigzagGemv
from spqt_ti.kernels.cpu.schemes import decoder_of

SHAPE = (2400, 40)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches of a few copies instead of 128 MiB."""
    monkeypatch.setattr(gemv_drivers, "COLD_BYTES", 200_000)
    monkeypatch.setattr(gemv_drivers, "WARM_BYTES", 200_000)
    monkeypatch.setattr(gemv, "read_bandwidth", lambda threads: 1e10)


@pytest.mark.parametrize("warm", [False, True])
def test_every_kernel(warm: bool) -> None:
    rows = gemv.measure_gemv([SHAPE], [1.0, 0.5], threads=1, rounds=2, warm=warm)
    assert [(row.kernel, row.density) for row in rows] == [
        ("row", 1.0), ("b1", 0.5), ("zigzag", 1.0), ("b2", 0.5), ("full", 0.5),
    ]  # fmt: skip
    named = {row.kernel: row for row in rows}
    assert named["row"].speedup_over_row == named["zigzag"].speedup_over_dense == 1
    assert named["full"].collect_microseconds > 0 == named["zigzag"].collect_microseconds
    for row in rows:
        assert row.microseconds > 0
        assert row.read_fraction == pytest.approx(row.gigabytes_per_second / 10)
    assert len(gemv.table(rows).rows) == 5


@pytest.mark.parametrize(
    ("scheme", "kernel", "density"),
    [("q4_k", "zigzag", 1.0), ("q4_k", "b2", 0.5), ("q4_k", "full", 0.5), ("q3_k", "full", 0.5)],
)
def test_launches_compute_the_product(scheme: str, kernel: str, density: float) -> None:
    """All copies are the same matrix, so what the last turn leaves is that of one product."""
    decoder = decoder_of(find(scheme))
    driver = gemv_drivers.Zigzag(*SHAPE, threads=1, decoder=decoder)
    assert driver.copies == driver.turns > 2
    driver.run(kernel, density)
    got = host_view(driver.scratch).reshape(-1)[: SHAPE[0]]
    x = host_view(driver.x).reshape(-1)[: SHAPE[1]]
    active = np.flatnonzero(np.abs(x) > gemv_drivers.threshold_for(SHAPE[1], density)) if density < 1 else None
    data = gemv_drivers.stored_bytes(*SHAPE, "zigzag", False, decoder.scheme)[0]
    assert data.size == layout.nbytes(*SHAPE, "zigzag", decoder.scheme)
    expected = ZigzagGemv(data, driver.shape, 1, decoder=decoder)(
        x, None if active is None else active.astype(np.int32)
    )
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_rows_compute_the_product() -> None:
    decoder = decoder_of(find("q3_k"))
    driver = gemv_drivers.Rows(300, 520, threads=1, decoder=decoder)
    driver.run("row", 1.0)
    x = host_view(driver.vectors[0]).reshape(-1)[:520]
    w = layout.dequantize_matrix(
        gemv_drivers.stored_bytes(300, 520, "row", False, decoder.scheme)[0], 300, 520, "row", decoder.scheme
    )
    expected = w.astype(np.float64) @ x
    got = host_view(driver.vectors[2]).reshape(-1)[:300]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_other_schemes_have_no_baselines() -> None:
    """B1 and B2 are Q4_K's; every row names its scheme, and so does a table of several."""
    rows = gemv.measure_gemv([(300, 40)], [0.5], threads=1, rounds=1, schemes=["q4_k", "q3_k"])
    assert [(row.scheme, row.kernel) for row in rows] == [
        *(("q4_k", kernel) for kernel in gemv.KERNELS), ("q3_k", "row"), ("q3_k", "zigzag"), ("q3_k", "full"),
    ]  # fmt: skip
    assert gemv.table(rows).titles[0] == "scheme" != gemv.table(rows[:5]).titles[0]


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--shapes", "300x40", "--densities", "0.5", "--threads", "1", "--rounds", "1"]
    assert main(["bench", "gemv", *options, "--kernels", "zigzag,full", "--json"]) == 0
    row, dense, full = json.loads(capsys.readouterr().out)  # what others are compared with is never left out
    assert (row["kernel"], dense["kernel"], full["kernel"], full["rows"], full["cols"], full["density"]) == (
        "row", "zigzag", "full", 300, 40, 0.5,
    )  # fmt: skip
    assert row["speedup_over_row"] == dense["speedup_over_dense"] == 1
    pytest.importorskip("matplotlib")
    assert main(["bench", "gemv", *options, "--plot", str(tmp_path / "plot.png")]) == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert main(["bench", "gemv", *options, "--plot", str(tmp_path / "nowhere" / "plot.png")]) == 1
    assert "cannot write the plot" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--shapes", "5"], ["--kernels", "b3"], ["--schemes", "q4_1"]])
def test_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gemv", *options]) == 1
    assert capsys.readouterr().err.startswith("spqt: error: --")


@pytest.mark.parametrize("options", [["--densities", "2"], ["--densities", "x"], ["--rounds", "0"]])
def test_wrong_usage(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "gemv", *options])
    assert f"argument {options[0]}: " in capsys.readouterr().err


def test_plot_without_matplotlib(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["bench", "gemv", "--shapes", "300x40", "--plot", "x.png"]) == 1
    assert "pip install 'spqt-ti[plot]'" in capsys.readouterr().err
