"""Tuning files, and what is chosen from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_containers

import spqt_ti
from spqt_ti import tuning as module
from spqt_ti.benchmark import tune
from spqt_ti.cli.main import main
from spqt_ti.errors import TuningError
from spqt_ti.kernels.geometry import ZigzagShape
from spqt_ti.model import dispatch
from spqt_ti.model.sites import matrix_shapes
from spqt_ti.tuning import DEFAULT_MAX_DENSITY, TunedShape, Tuning

SHAPE = TunedShape(300, 40, 2, 4, dense=100.0, alpha=15.0, beta=100.0)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This device's file, in a folder of its own; the models of the tests are found all the same."""
    path = tmp_path / "tuning" / "device.json"
    for place in ("spqt_ti.tuning", "spqt_ti.model.llama", "spqt_ti.benchmark.tune"):
        monkeypatch.setattr(f"{place}.tuning_path", lambda: path)
    return path


def test_fit() -> None:
    tuned = TunedShape.fit(300, 40, 2, 4, 100.0, [(0.75, 83.0), (0.5, 58.0), (0.25, 33.0)])
    assert (tuned.alpha, tuned.beta) == (pytest.approx(8), pytest.approx(100))
    assert tuned.sparse_time(0.5) == pytest.approx(58)
    assert tuned.max_density == pytest.approx(0.97)


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"), [(15, 100, 0.9), (0, 50, 1), (106, 10, 0), (50, 0, 1), (106, 0, 0), (120, -10, 0)]
)
def test_max_density(alpha, beta, expected) -> None:
    assert TunedShape(300, 40, 2, 4, 100.0, alpha, beta).max_density == pytest.approx(expected)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "device.json"
    assert Tuning.load(path).shapes == ()
    tuning = Tuning("device", {"taichi": "1.7.4"}, "2026-11-21", (SHAPE,))
    tuning.save(path)
    assert Tuning.load(path) == tuning
    assert [p.name for p in path.parent.iterdir()] == ["device.json"]


def test_newer_measurements_replace_older_ones() -> None:
    other, newer = TunedShape(300, 40, 1, 1, 1, 1, 1), TunedShape(300, 40, 2, 8, 1, 1, 1)
    tuning = Tuning("device", {}, "", (SHAPE, other)).updated([newer], {}, "today")
    assert tuning.shapes == (other, newer)
    assert tuning.find(300, 40, 2) == newer
    assert tuning.find(300, 41, 2) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 0}', '{"format": 1, "shapes": [{}]}', "\xff"])
def test_damaged_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(TuningError, match=f"{path}: not a tuning"):
        Tuning.load(path)


def test_panel_bands_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    Tuning("device", {}, "", (TunedShape(300, 40, 2, 33, 1, 1, 1),)).save(path)
    with pytest.raises(TuningError, match="panel_bands must be between 1 and 32"):
        Tuning.load(path)


def test_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TuningError, match="cannot write the tuning"):
        Tuning("device", {}, "").save(tmp_path / "file" / "device.json")


def test_choices() -> None:
    choices = dispatch.choose(
        {"o": ZigzagShape(300, 40), "down": ZigzagShape(40, 300)}, Tuning("", {}, "", (SHAPE,)), 2
    )
    tuned, default = choices["o"], choices["down"]
    assert (tuned.panel_bands, tuned.max_density, tuned.tuned) == (4, pytest.approx(0.9), True)
    assert (default.panel_bands, default.max_density, default.tuned) == (None, DEFAULT_MAX_DENSITY, False)
    assert not tuned.runs_sparse(0)
    assert not tuned.runs_sparse(0.05)
    assert tuned.runs_sparse(0.5)
    assert "density 95% is above the 90%" in tuned.reason(0.05)
    assert "default, not tuned" in default.reason(0.5)


def test_tune_then_decode(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command measures a model's matrices and keeps them; the runner and `info` then go by them."""
    monkeypatch.setattr(tune, "COLD_BYTES", 200_000)
    model = tiny_containers.container("gqa").path
    assert main(["tune", str(model), "--threads", "1", "--rounds", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    shapes = matrix_shapes(tiny_containers.container("gqa").config)
    assert {(row["rows"], row["cols"]) for row in rows} == {(s.rows, s.cols) for s in shapes.values()}
    kept = Tuning.load(path)
    assert kept.versions["spqt-ti"] == spqt_ti.__version__
    # Let skipping never pay for o, and always for the others.
    bad = shapes["o"]
    changed = [
        TunedShape(s.rows, s.cols, 1, 2, 1.0, 9.0 if (s.rows, s.cols) == (bad.rows, bad.cols) else 0.0, 0.5)
        for s in shapes.values()
    ]
    kept.updated(changed, {}, "").save(path)
    loaded = spqt_ti.load(model, threads=1, sparsity=0.5)
    assert [choice.panel_bands for choice in loaded.llama.choices.values()] == [2, 2, 2, 2]
    dense = (loaded.llama.thresholds == 0).all(axis=0)
    same = [(s.rows, s.cols) == (bad.rows, bad.cols) for s in shapes.values()]
    assert dense.tolist() == same
    assert main(["info", str(model), "--threads", "1", "--json"]) == 0
    decode = json.loads(capsys.readouterr().out)["decode"]
    assert [matrix["sparse"] for matrix in decode["matrices"]] == [not d for d in same]
    assert main(["info", str(model), "--threads", "1"]) == 0
    assert "measured by spqt tune" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options", [[], ["x", "--shapes", "3x3"], ["--shapes", "x"], ["--shapes", "3x3", "--rounds", "0"]]
)
def test_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *options]) == 1
    assert capsys.readouterr().err.startswith("spqt: error: ")


def test_path_names_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "device_name", lambda: "AMD EPYC 9B14 (rev. 1)")
    assert module.tuning_path().name == "amd-epyc-9b14-rev-1.json"
