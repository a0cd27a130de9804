"""calibrate and perplexity: files, tables, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_containers

from spqt_ti.cli import calibrate as calibrate_command
from spqt_ti.cli import main as cli
from spqt_ti.errors import PolicyError
from spqt_ti.sparsity import capture
from spqt_ti.sparsity.checkpoint import Checkpoint
from spqt_ti.sparsity.methods import METHODS
from spqt_ti.sparsity.methods.uniform import sample_text
from spqt_ti.sparsity.policy import SparsityPolicy

CONTEXT = 64  # as the shared runner's, so that no kernel is compiled twice
CALIBRATION = "\n\n".join(f"The quick brown fox number {i} jumps over the lazy dog, again." for i in range(20))
EVALUATION = "\n\n".join(f"In the beginning was the word {i}, and the word was with the small model." for i in range(9))


OF_THRESHOLDS = [method for method in METHODS if method != "svd"]  # it needs a ReLU model: test_svd.py


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "calibration.txt", tmp_path / "evaluation.txt"
    for path, text in zip(paths, (CALIBRATION, EVALUATION), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def model() -> Path:
    return tiny_containers.container("gqa").path


def run(capsys, *arguments: object, code: int = 0) -> str:
    """stdout of a command that succeeds, stderr of one that does not."""
    assert cli.main([str(argument) for argument in arguments]) == code
    output = capsys.readouterr()
    return output.err if code else output.out


def calibrate(capsys, text: Path, output: Path, *more: object, code: int = 0) -> str:
    """Checkpoints of its own for each output, so that no command finds what another has done; a short search."""
    places = ("--checkpoints", text.with_name(f"{output.stem}.checkpoints"), "--generations", 2, "--offspring", 4)
    return run(capsys, "calibrate", model(), "--text", text, "-o", output, *places, *more, code=code)


def test_choices_are_the_methods() -> None:
    assert set(calibrate_command.METHODS) == set(METHODS)


def test_calibrate_and_evaluate(texts, tmp_path, capsys) -> None:
    calibration, evaluation = texts
    files = []
    for method in OF_THRESHOLDS:
        report = calibrate(
            capsys, calibration, tmp_path / f"{method}.json", "--method", method, "--sparsity", "0.25,0.5", "--json"
        )
        files += json.loads(report)["files"]
    assert [Path(f).name for f in files[:2]] == ["uniform-0.25.json", "uniform-0.5.json"]
    assert {SparsityPolicy.load(f).method for f in files} == set(OF_THRESHOLDS)
    policies = [argument for file in files for argument in ("--policy", file)]
    rows = json.loads(
        run(capsys, "perplexity", model(), "--text", evaluation, "--context", CONTEXT, *policies, "--json")
    )
    assert list(rows[0]) == [
        "method", "policy", "sparsity", "perplexity", "perplexity_se", "kl_mean", "kl_p99", "top1", "realised_sparsity",
        "tokens", "inputs_skipped",
    ]  # fmt: skip
    assert [row["policy"] for row in rows] == files
    assert [list(layer) for layer in rows[0]["inputs_skipped"]] == [["qkv", "o", "gate_up", "down"]] * 2
    for low, high in zip(rows[::2], rows[1::2], strict=True):
        assert 0 < low["kl_mean"] < high["kl_mean"]
        assert low["realised_sparsity"] < high["realised_sparsity"]


def test_same_text_same_file(texts, tmp_path, capsys) -> None:
    for name in ("one.json", "two.json"):
        calibrate(capsys, texts[0], tmp_path / name, "--method", "wisparse", "--sparsity", "0.4")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


@pytest.mark.parametrize("method", OF_THRESHOLDS)
def test_ctrl_c_and_the_same_command_again(method, texts, tmp_path, capsys, monkeypatch) -> None:
    """Interrupted right after the first checkpoint: exit code, no file, and then the file of an uninterrupted run."""
    whole, cut = tmp_path / "whole.json", tmp_path / "cut.json"
    calibrate(capsys, texts[0], whole, "--method", method, "--sparsity", "0.5")
    real = Checkpoint.save

    def interrupted(self, *arguments, **settings):
        real(self, *arguments, **settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(capture, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", interrupted)
        message = calibrate(capsys, texts[0], cut, "--method", method, "--sparsity", "0.5", code=130)
    assert f"what is done is in {tmp_path / 'cut.checkpoints'}; the same command goes on from there" in message
    assert not cut.exists()
    calibrate(capsys, texts[0], cut, "--method", method, "--sparsity", "0.5")
    assert cut.read_bytes() == whole.read_bytes()


def test_checkpoints_of_another_text(texts, tmp_path, capsys) -> None:
    calibrate(capsys, texts[0], tmp_path / "p.json", "--sparsity", "0.5")
    texts[0].write_text(CALIBRATION + " More.", encoding="utf-8")
    error = calibrate(capsys, texts[0], tmp_path / "p.json", "--sparsity", "0.5", code=1)
    assert "capture.npz: checkpoint of another calibration (text is" in error


@pytest.mark.parametrize("method", OF_THRESHOLDS)
def test_one_capture_serves_every_level(method, texts, tmp_path, capsys, monkeypatch) -> None:
    """A second command finds what the first has counted."""
    calibrate(capsys, texts[0], tmp_path / "p.json", "--method", method, "--sparsity", "0.5")
    monkeypatch.setattr(capture, "histogram", None)
    calibrate(capsys, texts[0], tmp_path / "p.json", "--method", method, "--sparsity", "0.3")
    assert SparsityPolicy.load(tmp_path / "p.json").sparsity == 0.3


@pytest.mark.parametrize("wrong", [("--seed", -1), ("--offspring", 0), ("--generations", -1)])
def test_searches_that_are_none(wrong, texts, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        calibrate(capsys, texts[0], tmp_path / "p.json", "--sparsity", "0.4", *wrong)
    assert f"argument {wrong[0]}: must be" in capsys.readouterr().err


def test_overlap_is_refused(texts, tmp_path, capsys) -> None:
    calibrate(capsys, texts[0], tmp_path / "p.json", "--sparsity", "0.4")
    arguments = ("perplexity", model(), "--context", CONTEXT, "--policy", tmp_path / "p.json", "--text")
    assert "is the text that the policy was calibrated on" in run(capsys, *arguments, texts[0], code=1)
    texts[1].write_text(EVALUATION + "\n\n" + CALIBRATION.split("\n\n")[3], encoding="utf-8")
    assert "shares 1 paragraphs" in run(capsys, *arguments, texts[1], code=1)


def test_texts_too_short(texts, tmp_path, capsys) -> None:
    texts[0].write_text("Too short.", encoding="utf-8")
    assert "expected 256 or more" in calibrate(capsys, texts[0], tmp_path / "p.json", "--sparsity", "0.4", code=1)
    assert not (tmp_path / "p.json").exists()
    assert "fewer than one window" in run(
        capsys, "perplexity", model(), "--context", CONTEXT, "--text", texts[0], code=1
    )


def test_levels_and_policies_in_one_table(texts, tmp_path, capsys) -> None:
    calibrate(capsys, texts[0], tmp_path / "p.json", "--method", "wina", "--sparsity", "0.4")
    arguments = ("--text", texts[1], "--context", CONTEXT, "--sparsity", "0,0.3", "--policy", tmp_path / "p.json")
    lines = run(capsys, "perplexity", model(), *arguments).splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:5]] == [
        ["| dense", "0%"], ["| uniform", "30%"], ["| wina (p.json)", "40%"],
    ]  # fmt: skip
    assert "each as if decoded sparsely" in lines[6]


def test_the_packaged_sample_is_no_evaluation_text(texts, capsys) -> None:
    texts[1].write_text(sample_text(), encoding="utf-8")
    arguments = ("perplexity", model(), "--context", CONTEXT, "--text", texts[1], "--sparsity", "0.4")
    assert "shares" in run(capsys, *arguments, code=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "0123456789abcdef"}, "made for model 0123456789abcdef"),
        ({"format": 99}, "policy format 99 is not supported"),
        ({"thresholds": [[0.1] * 4] * 3}, "has 3 layers, the model 2"),
        ({"weights": {"0.qkv": [1.0] * 5}}, "weights of qkv have shape"),
    ],
)
def test_policies_that_do_not_fit(change, message, texts, tmp_path, capsys) -> None:
    path = tmp_path / "p.json"
    calibrate(capsys, texts[0], path, "--sparsity", "0.4")
    path.write_text(json.dumps(json.loads(path.read_text()) | change), encoding="utf-8")
    arguments = ("--context", CONTEXT, "--policy", path, "--text", texts[1])
    assert message in run(capsys, "perplexity", model(), *arguments, code=1)


def test_a_policy_of_the_other_layout(texts, tmp_path, capsys) -> None:
    """The row layout has other weights under the same name, hence another fingerprint."""
    row = tiny_containers.container("gqa", "row")
    calibrate(capsys, texts[0], tmp_path / "p.json", "--sparsity", "0.4")
    with pytest.raises(PolicyError, match="calibrate again"):
        SparsityPolicy.load(tmp_path / "p.json").check(row.fingerprint, row.config.num_hidden_layers)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b"\x7fELF\x02\x00\x00", "NUL"), ("né".encode("latin-1"), "UTF-8")]
)
@pytest.mark.parametrize("command", ["calibrate", "perplexity"])
def test_what_is_no_text(command, content, message, texts, tmp_path, capsys) -> None:
    texts[0].write_bytes(content)
    more = ("--sparsity", "0.4", "-o", tmp_path / "p.json") if command == "calibrate" else ()
    error = run(capsys, command, model(), "--text", texts[0], *more, code=1)
    assert message in error
    assert str(texts[0]) in error
    assert not (tmp_path / "p.json").exists()


def test_no_place_for_the_policy(texts, tmp_path, capsys) -> None:
    nowhere = tmp_path / "missing" / "p.json"
    assert str(nowhere) in calibrate(capsys, texts[0], nowhere, "--sparsity", "0.4", code=1)


def test_percent_for_a_share(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "decode", str(model()), "--sparsity", "40"])
    assert "not 40; did you mean 0.4?" in capsys.readouterr().err


@pytest.mark.parametrize("levels", ["a", "0.2,", "1.0", "-0.1", "nan"])
def test_levels_that_are_none(levels, texts, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["calibrate", str(model()), "--text", str(texts[0]), "-o", "p.json", f"--sparsity={levels}"])
    assert caught.value.code == 2
    assert "--sparsity" in capsys.readouterr().err


def test_quick_is_another_calibration(texts, tmp_path, capsys) -> None:
    """Rougher, so that it is not taken for a whole one; a search that is asked for has its own size."""
    quick = ("--method", "teal", "--sparsity", "0.5")
    calibrate(capsys, texts[0], tmp_path / "p.json", *quick)
    whole = SparsityPolicy.load(tmp_path / "p.json")
    error = calibrate(capsys, texts[0], tmp_path / "p.json", *quick, "--quick", code=1)
    assert "checkpoint of another calibration (pick is None, not 0.1)" in error
    calibrate(capsys, texts[0], tmp_path / "q.json", *quick, "--quick")
    rough = SparsityPolicy.load(tmp_path / "q.json")
    assert (rough.method, rough.sparsity) == ("teal", 0.5)
    assert (rough.thresholds != whole.thresholds).any()


def test_neuron_predictors(tmp_path, capsys) -> None:
    """Made, described, scored, decoded by, and refused where there is none."""
    name = next(name for name in tiny_containers.MODELS if "relu" in name.split("+"))
    directory = tiny_containers.container(name, "zigzag,gate_up=row").path
    policy = tmp_path / "policy.json"
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and in the beginning was the word.\n" * 60)
    more = ("--text", text, "--tokens", 1000, "--checkpoints", tmp_path / "kept", "--threads", 1)
    run(capsys, "calibrate", directory, "--method", "svd", "--rank", 24, "--sparsity", 0.5, "-o", policy, *more)
    report = json.loads(run(capsys, "info", policy, "--json"))
    assert (report["method"], report["rank"], report["executor"]) == ("svd", 24, "sequential")
    assert [layer["rank"] for layer in report["predictors"]] == [24, 24]
    assert "recall" in run(capsys, "info", policy)
    other = tmp_path / "other.txt"
    other.write_text(EVALUATION)
    common = ("--policy", policy, "--threads", 1, "--json")
    scored = json.loads(
        run(capsys, "perplexity", directory, "--text", other, "--context", CONTEXT, "--windows", 2, *common)
    )
    shorter = ("--tokens", 8, "--rounds", 1, "--sparsity", 0)
    dense, decoded = json.loads(run(capsys, "bench", "decode", directory, *shorter, *common))
    assert (scored[0]["method"], decoded["method"]) == ("svd", "svd")
    assert scored[0]["kl_mean"] > 0
    assert 0 < scored[0]["realised_sparsity"] == pytest.approx(decoded["realised_sparsity"], abs=0.1)
    assert decoded["bytes_per_token"] < dense["bytes_per_token"]
    policy.with_suffix(".safetensors").unlink()
    assert "belongs beside the policy" in run(capsys, "info", policy, code=1)
