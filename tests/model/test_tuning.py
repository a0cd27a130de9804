"""Tuning files, what is measured for them, and what is chosen from them."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_containers

import spqt_ti
from spqt_ti import backend
from spqt_ti.backend import Runtime
from spqt_ti.backend.capabilities import of_device
from spqt_ti.backend.devices import Device
from spqt_ti.benchmark import divisions, gemv_drivers, tune
from spqt_ti.cli.main import main
from spqt_ti.errors import TuningError
from spqt_ti.kernels.simt.division import Division, default_division
from spqt_ti.kernels.simt.zigzag import ZigzagWords
from spqt_ti.model import dispatch
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.engine import EngineKind
from spqt_ti.model.engines import ENGINES
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import matrix_shapes
from spqt_ti.model.tuning import DEFAULT_MAX_DENSITY, TunedShape, Tuning, tuning_path

ON_CPU = TunedShape(384, 192, 100.0, 15.0, 100.0, "4", threads=2)
ON_GPU = TunedShape(384, 192, 100.0, 15.0, 100.0, "8x2")
CONFIG = ModelConfig(
    hidden_size=192, intermediate_size=320, num_hidden_layers=1, num_attention_heads=12, num_key_value_heads=6,
    head_dim=16, vocab_size=64, max_position_embeddings=64,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPQT_CACHE_DIR", str(tmp_path))


def test_the_density_up_to_which_skipping_pays_is_included() -> None:
    choice = dispatch.Choice("o", 384, 192, "4", max_density=0.75, tuned=True)
    assert [choice.runs_sparse(level) for level in (0.0, 0.24, 0.25, 0.26)] == [False, False, True, True]


def kind_for(threads: int | None) -> EngineKind:
    return ENGINES["groups" if threads is None else "workers"]


def choose(config: ModelConfig, threads: int | None, *shapes: TunedShape) -> dict[str, dispatch.Choice]:
    return dispatch.choose(config, Tuning("", {}, "", shapes), threads, kind_for(threads))


def write(device: str, text: str) -> Path:
    path = tuning_path(device)
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="latin-1")
    return path


def test_fit() -> None:
    tuned = TunedShape.fit((300, 40), 100.0, [(0.75, 83.0), (0.5, 58.0), (0.25, 33.0)], "8x2")
    assert (tuned.alpha, tuned.beta) == (pytest.approx(8), pytest.approx(100))
    assert tuned.sparse_time(0.5) == pytest.approx(58)
    assert tuned.max_density == pytest.approx(0.97)
    assert (tuned.threads, tuned.division) == (None, "8x2")


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"), [(15, 100, 0.9), (0, 50, 1), (106, 10, 0), (50, 0, 1), (106, 0, 0), (120, -10, 0)]
)
def test_max_density(alpha, beta, expected) -> None:
    assert TunedShape(300, 40, 100.0, alpha, beta, "4").max_density == pytest.approx(expected)


@pytest.mark.parametrize("shape", [ON_CPU, ON_GPU], ids=["cpu", "gpu"])
def test_round_trip(shape: TunedShape) -> None:
    assert Tuning.load("a device").shapes == ()
    tuning = Tuning("a device", {"taichi": "1.7.4"}, "2026-11-21", (shape,))
    path = tuning.save()
    assert Tuning.load("a device") == tuning
    assert [p.name for p in path.parent.iterdir()] == ["a-device.json"]


def test_newer_measurements_replace_older_ones() -> None:
    other, newer = (dataclasses.replace(ON_CPU, threads=threads, dense=1.0) for threads in (1, 2))
    tuning = Tuning("device", {}, "", (ON_CPU, other)).updated([newer, ON_GPU], {}, "today")
    assert tuning.shapes == (other, newer, ON_GPU)
    assert tuning.find(384, 192, 2) == newer
    assert tuning.find(384, 192, None) == ON_GPU
    assert tuning.find(384, 193, 2) is None


def test_two_that_measure_at_once_keep_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads the file, adds to it and writes it."""
    load = Tuning.load

    def slowly(device: str) -> Tuning:
        found = load(device)
        time.sleep(0.05)
        return found

    monkeypatch.setattr(Tuning, "load", slowly)
    shapes = [dataclasses.replace(ON_CPU, rows=rows) for rows in (256, 512, 768, 1024)]
    threads = [threading.Thread(target=tune.keep, args=([shape], "cpu")) for shape in shapes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(load("cpu").shapes, key=lambda shape: shape.rows) == shapes
    assert [path.name for path in tuning_path("cpu").parent.iterdir()] == [tuning_path("cpu").name]


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"format": 1}', '{"format": 2, "shapes": [{}]}', "\xff", '{"format": 2, "shapes": ["x"]}',
        '{"format": 3, "shapes": 1.5}',
    ],
)  # fmt: skip
def test_damaged_file(text: str) -> None:
    path = write("device", text)
    with pytest.raises(TuningError, match=f"{path}: not a tuning .* run spqt tune again"):
        Tuning.load("device")
    assert tune.keep([ON_GPU], "device") == path  # what the message says
    assert Tuning.load("device").shapes == (ON_GPU,)


@pytest.mark.parametrize(
    ("shape", "division", "message"),
    [
        (ON_CPU, "33", "between 1 and 32 bands can be side by side, not '33'"),
        (ON_CPU, "8x2", "between 1 and 32 bands can be side by side, not '8x2'"),
        (ON_GPU, "3x5", "a division must be threadgroups x .*, not '3x5'"),
        (ON_GPU, "1x16", "a division must be threadgroups x .*, not '1x16'"),
    ],
)
def test_what_kernels_do_not_do(shape: TunedShape, division: str, message: str) -> None:
    """Only the engine knows; a file is read without it."""
    Tuning("device", {}, "", (dataclasses.replace(shape, division=division),)).save()
    with pytest.raises(TuningError, match=f"tuning of device .*{message}.*run spqt tune again"):
        dispatch.choose(CONFIG, Tuning.load("device"), shape.threads, kind_for(shape.threads))


def test_format_2() -> None:
    """It had fields of both engines."""
    fields = {"rows": 384, "cols": 192, "dense": 100.0, "alpha": 15.0, "beta": 100.0}
    shapes = [
        {**fields, "threads": 2, "panel_bands": 4, "split": None},
        {**fields, "threads": None, "panel_bands": None, "split": {"groups": 8, "simdgroups": 2}},
    ]
    text = json.dumps({"format": 2, "device": "device", "versions": {}, "date": "", "shapes": shapes})
    write("device", text)
    assert Tuning.load("device").shapes == (ON_CPU, ON_GPU)


def test_unwritable(tmp_path: Path) -> None:
    (tmp_path / "tuning").touch()
    with pytest.raises(TuningError, match="cannot write the tuning"):
        Tuning("device", {}, "").save()


def test_choices_on_a_cpu() -> None:
    choices = choose(CONFIG, 2, ON_CPU, ON_GPU)
    tuned, default = choices["qkv"], choices["down"]
    assert (tuned.division, tuned.max_density, tuned.tuned) == ("4", pytest.approx(0.9), True)
    assert (default.division, default.max_density, default.tuned) == (None, DEFAULT_MAX_DENSITY, False)
    assert not tuned.runs_sparse(0)
    assert not tuned.runs_sparse(0.05)
    assert tuned.runs_sparse(0.5)
    assert "95% of the inputs active; skipping pays up to 90%" in tuned.reason(0.05)
    assert "default, not tuned" in default.reason(0.5)


def test_choices_on_a_gpu() -> None:
    choices = choose(CONFIG, None, ON_CPU, ON_GPU)
    tuned, default = choices["qkv"], choices["down"]
    assert (tuned.division, tuned.max_density, tuned.tuned) == ("8x2", 0.9, True)
    assert (default.division, default.tuned) == (str(default_division(1, 320)), False)


def test_a_division_that_cannot_add_up_the_heads(caplog: pytest.LogCaptureFixture) -> None:
    """The list of o has a segment per head; those that fit are taken, others would not compile."""
    config = dataclasses.replace(CONFIG, hidden_size=2048, num_attention_heads=128, num_key_value_heads=128)

    def choice(division: Division) -> dispatch.Choice:
        return choose(config, None, TunedShape(2048, 2048, 1, 0, 1, str(division)))["o"]

    assert choice(Division(8, 2)).division == "8x2"
    assert caplog.messages == []
    refused = choice(Division(8, 1))
    assert (refused.division, refused.tuned) == (str(default_division(8, 2048)), False)
    (message,) = caplog.messages
    assert message.startswith("o: the tuned division 8x1 cannot add up a list of 128 segments")


def test_each_device_has_a_file() -> None:
    assert tuning_path("AMD EPYC 9B14 (rev. 1)").name == "amd-epyc-9b14-rev-1.json"
    gpu = of_device("vulkan", Device("a GPU", True, 8 << 30, 32 << 10, 1024, 1 << 30))
    names = [Runtime(name, 2, "a GPU", gpu).name for name in ("vulkan", "cuda")]
    assert [tuning_path(name).name for name in names] == ["vulkan-a-gpu.json", "cuda-a-gpu.json"]
    assert backend.look_up("cpu").name == backend.devices.cpu_name()


def test_tune_then_decode(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command measures a model's matrices and keeps them; the runner and `info` then go by them."""
    monkeypatch.setattr(gemv_drivers, "COLD_BYTES", 200_000)
    model, config = tiny_containers.container("gqa").path, tiny_containers.container("gqa").config
    assert main(["tune", str(model), "--threads", "1", "--rounds", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    shapes = matrix_shapes(config)
    assert {(row["rows"], row["cols"]) for row in rows} == {(s.rows, s.cols) for s in shapes.values()}
    kept = Tuning.load(backend.runtime().name)
    assert kept.versions["spqt-ti"] == spqt_ti.__version__
    # Let skipping never pay for o, and always for the others.
    bad = shapes["o"]
    changed = [TunedShape(s.rows, s.cols, 1.0, 9.0 if s == bad else 0.0, 0.5, "2", threads=1) for s in shapes.values()]
    kept.updated(changed, {}, "").save()
    loaded = spqt_ti.load(model, threads=1, sparsity=0.5)
    assert [choice.division for choice in loaded.llama.choices.values()] == ["2"] * 4
    dense = (loaded.llama.thresholds == 0).all(axis=0)
    same = [s == bad for s in shapes.values()]
    assert dense.tolist() == same
    assert main(["info", str(model), "--threads", "1", "--json"]) == 0
    decode = json.loads(capsys.readouterr().out)["decode"]
    assert (decode["backend"], decode["threads"]) == ("cpu", 1)
    assert [matrix["sparse"] for matrix in decode["matrices"]] == [not d for d in same]
    assert main(["info", str(model), "--threads", "1"]) == 0
    assert "measured by spqt tune" in capsys.readouterr().out


@pytest.mark.threadgroups
def test_tune_a_gpu_then_decode(
    backend_name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, with few candidates, because each is compiled; the logits are those of the default divisions."""
    few = [Division(1, 1), Division(2, 2)]
    monkeypatch.setattr(divisions, "candidates", lambda *_: few)
    monkeypatch.setattr(divisions, "COLD_BYTES", 100_000)
    monkeypatch.setattr(divisions, "NEAR", 1e9)
    container = tiny_containers.container("gqa")
    model, shapes = str(container.path), matrix_shapes(container.config)
    tuned_one = shapes["qkv"]
    assert main(["tune", "--shapes", f"{tuned_one.rows}x{tuned_one.cols}", "--rounds", "1"]) == 0
    output = capsys.readouterr()
    titles, _, row, _, where, _ = output.out.splitlines()
    assert titles == "| rows x cols | division | dense us | sparse us, d of inputs active | skipping pays up to |"
    kept = Tuning.load(backend.look_up(backend_name).name)
    assert where == f"kept in {tuning_path(kept.device)}"
    (measured,) = kept.shapes
    assert measured.division in map(str, few)
    assert row.startswith(f"| {tuned_one.rows}x{tuned_one.cols} | {measured.division} | {measured.dense:.1f} | ")
    assert min(measured.dense, measured.sparse_time(0.5)) > 0
    others = [TunedShape(s.rows, s.cols, 1.0, 0.0, 0.5, "4x2") for s in shapes.values() if s != tuned_one]
    kept.updated(others, {}, "").save()
    assert main(["info", model, "--json"]) == 0
    decode = json.loads(capsys.readouterr().out)["decode"]
    wanted = {site: measured.division if shape == tuned_one else "4x2" for site, shape in shapes.items()}
    assert {m["site"]: m["division"] for m in decode["matrices"]} == wanted
    assert all(matrix["tuned"] for matrix in decode["matrices"])
    llama = Llama(container, context=64, tuning=Tuning.load(kept.device))
    assert {site: choice.division for site, choice in llama.choices.items()} == wanted
    by_default = tiny_containers.llama("gqa")
    by_default.reset()
    by_default.selectors.clear()
    for token in (17, 203, 5):
        expected = by_default.decode(token)
        np.testing.assert_allclose(llama.decode(token), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_copies_fit_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cold, but in arrays that the device binds and half of its memory."""
    words = ZigzagWords(256, 1024)
    size = 144 * 1024
    for memory, array, expected in (
        (64 << 30, 4 << 30, -(-divisions.COLD_BYTES // size)),
        (64 << 30, 1 << 20, (1 << 20) // (128 * 1024)),
        (10 * size, 4 << 30, 5),
        (size, 4 << 30, 1),
    ):
        limits = of_device("cuda", Device("a GPU", True, memory, 32 << 10, 1024, array))
        monkeypatch.setattr(backend, "_runtime", Runtime("cuda", 1, "a GPU", limits))
        assert divisions._copies(words, size) == expected


def test_dry_run_and_reset(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tune, "tune_shapes", lambda *_: [ON_CPU])
    path = tuning_path(backend.look_up("cpu").name)
    assert main(["tune", "--shapes", "3x3", "--backend", "cpu", "--dry-run", "--csv"]) == 0
    assert capsys.readouterr().out.startswith("rows,cols,dense,")
    assert not path.exists()
    assert main(["tune", "--shapes", "3x3", "--backend", "cpu"]) == 0
    assert f"kept in {path}" in capsys.readouterr().out
    assert path.exists()
    for said in ("removed, defaults hold again", "nothing was measured"):
        assert main(["tune", "--reset", "--backend", "cpu"]) == 0
        assert said in capsys.readouterr().out
        assert not path.exists()


@pytest.mark.parametrize("options", [[], ["x", "--shapes", "3x3"], ["--shapes", "x"], ["x", "--reset"]])
def test_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *options]) == 1
    assert capsys.readouterr().err.startswith("spqt: error: ")


@pytest.mark.parametrize("command", [["tune"], ["info"]], ids=str)
def test_threads_are_the_cpus(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Device("a GPU", True, 8 << 30, 32 << 10, 1024, 1 << 30)
    monkeypatch.setattr(backend.devices, "find", lambda name: gpu)
    model = str(tiny_containers.container("gqa").path)
    assert main([*command, model, "--backend", "cuda", "--threads", "2"]) == 1
    assert capsys.readouterr().err == (
        "spqt: error: --threads is for the CPU; cuda a GPU has no worker threads: leave it out\n"
    )
