"""The command line: every failure is one line and an exit code, never a traceback; nothing is left half-done."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import random_weights, tiny_config, write_gguf, write_huggingface, write_safetensors

import spqt_ti
from spqt_ti import api
from spqt_ti.cli import generating
from spqt_ti.cli import main as cli
from spqt_ti.cli.output import print_json
from spqt_ti.container import writer as writer_module
from spqt_ti.errors import SpqtError
from spqt_ti.generation.sampling import Sampling
from spqt_ti.sources.checkpoint import Checkpoint

CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG)


@pytest.fixture
def source(tmp_path) -> Path:
    return write_huggingface(tmp_path / "source", CONFIG, WEIGHTS)


@pytest.fixture
def gguf_source(tmp_path) -> Path:
    return write_gguf(tmp_path / "source.gguf", CONFIG, WEIGHTS)


def tree(path: Path) -> dict[str, str]:
    """Relative path -> checksum of everything below `path`."""
    files = sorted(file for file in path.rglob("*") if not file.is_dir())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def fails(capsys, *arguments: object, code: int = 1) -> str:
    """Run a command that has to fail, and return the line it says on stderr."""
    try:
        found = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's way
        found = int(stop.code or 0)
    output = capsys.readouterr()
    assert found == code
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("spqt: error: ")
    return line


# Help and usage -------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom spqt_ti.cli.main import main\n"
        "try:\n    main(['generate', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(', '.join({'taichi', 'numpy', 'tokenizers', 'gguf'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--max-new-tokens" in result.stdout


@pytest.mark.parametrize("command", [[], ["pull"], ["quantize"], ["info"], ["generate"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("usage: spqt")


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"spqt {spqt_ti.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["dance"],
        ["quantize", "only-a-source"],
        ["quantize", "a", "b", "--layout", "diagonal"],
        ["quantize", "a", "b", "--rotate", "residual,qkv"],
        ["quantize", "a", "b", "--prune", "1.5"],
        ["quantize", "a", "b", "--prune", "0.1", "--plan", "plan.json"],
        ["generate", "model", "prompt", "--threads", "many"],
        ["generate", "model", "prompt", "--seed", "-1"],
        ["generate", "model", "prompt", "--sparsity", "0.5", "--policy", "file"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line(arguments, capsys):
    assert "--help)" in fails(capsys, *arguments, code=2)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["generate", "model", "prompt", "--min-q", "0.1"], "spqt generate"),
        (["bench", "decode", "model", "--wrong"], "spqt bench decode"),
        (["--wrong", "generate", "model", "prompt"], "spqt generate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_unknown_option_names_the_commands_own_help(arguments, command, capsys):
    line = fails(capsys, *arguments, code=2)
    assert "unrecognized arguments: --" in line
    assert f"(see {command} --help)" in line


def test_no_command_shows_the_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("usage: spqt")


def test_python_m_is_the_command():
    result = subprocess.run([sys.executable, "-m", "spqt_ti", "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"spqt {spqt_ti.__version__}\n")


# Bad input ------------------------------------------------------------------------------------------------------------


def truncated_safetensors(path: Path) -> None:
    os.truncate(path / "model.safetensors", 5000)


def truncated_header(path: Path) -> None:
    os.truncate(path / "model.safetensors", 5)


def wrong_magic(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"PK\x03\x04" * 100)


def missing_tensor(path: Path) -> None:
    few = {name: values for name, values in WEIGHTS.items() if name != "model.layers.1.mlp.up_proj.weight"}
    write_safetensors(path / "model.safetensors", few)


def wrong_shape(path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    write_safetensors(path / "model.safetensors", WEIGHTS | {name: WEIGHTS[name].T.copy()})


def not_finite(path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    write_safetensors(path / "model.safetensors", WEIGHTS | {name: np.full_like(WEIGHTS[name], np.nan)})


def unknown_architecture(path: Path) -> None:
    fields = json.loads((path / "config.json").read_text())
    fields |= {"model_type": "mamba", "architectures": ["MambaForCausalLM"]}
    (path / "config.json").write_text(json.dumps(fields))


def damaged_json(path: Path) -> None:
    (path / "config.json").write_text('{"hidden_size": ')


def no_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").unlink()


BAD_DIRECTORIES = {
    truncated_safetensors: "not a whole safetensors file",
    truncated_header: "not a whole safetensors file",
    wrong_magic: "not a whole safetensors file",
    missing_tensor: "tensor model.layers.1.mlp.up_proj.weight is missing, expected shape [160, 192]",
    wrong_shape: "tensor model.layers.1.mlp.up_proj.weight has shape [192, 160], expected [160, 192]",
    not_finite: "tensor model.layers.1.mlp.up_proj.weight holds NaN or infinity",
    unknown_architecture: "architecture 'MambaForCausalLM' is not supported",
    damaged_json: "not valid JSON",
    no_tokenizer: "tokenizer.json: no such file",
}


@pytest.mark.parametrize(("damage", "message"), BAD_DIRECTORIES.items(), ids=[d.__name__ for d in BAD_DIRECTORIES])
def test_bad_directory(damage, message, source, tmp_path, capsys):
    damage(source)
    before = tree(tmp_path)
    line = fails(capsys, "quantize", source, tmp_path / "model")
    assert message in line
    assert str(source) in line
    assert tree(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_plans_that_do_not_fit(source, tmp_path, capsys):
    plan, model = tmp_path / "plan.json", tmp_path / "model"
    for content, message in (
        ('{"spqt_plan": 1, "model": {"sha256": "00"}, "rates": [0.1, 0.1]}', "made for the source with SHA-256 00"),
        ('{"spqt_plan": 1, "rates": [0.1]}', "rates of 1 layers, the model has 2"),
        ('{"spqt_plan": 1, "rates": [0.1, 1.1]}', "the rate of layer 1 is 1.1"),
        ("{}", "spqt_plan is None"),
    ):
        plan.write_text(content)
        assert message in fails(capsys, "quantize", source, model, "--plan", plan)
    assert "give the rates" in fails(capsys, "quantize", source, model, "--pruning", "weights")
    assert "reads no text" in fails(capsys, "quantize", source, model, "--tokens", "256")
    assert not model.exists()


def test_bad_gguf(gguf_source, tmp_path, capsys):
    data = gguf_source.read_bytes()
    for damaged, message in (
        (data[: len(data) // 2], "truncated: tensor"),
        (data[:100], "truncated in the header"),
        (b"GGML" + data[4:], "not a GGUF file (it starts with b'GGML'"),
        (data[:4] + struct.pack("<I", 99) + data[8:], "GGUF version 99 is not supported"),
        (data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba"), "mamba"),
        (data.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_uq.weight"), "model.layers.1.mlp.up_proj.weight"),
        (b"", "the file is empty"),
    ):
        gguf_source.write_bytes(damaged)
        line = fails(capsys, "quantize", gguf_source, tmp_path / "model")
        assert message in line
        assert str(gguf_source) in line
        assert gguf_source.read_bytes() == damaged
        assert {path.name for path in tmp_path.iterdir()} == {"source.gguf"}


def test_missing_source(tmp_path, capsys):
    for command in (["info", "nothing"], ["generate", "nothing", "hello"], ["quantize", "nothing", tmp_path / "model"]):
        assert "no such file or directory" in fails(capsys, *command)


def test_line_breaks_in_a_message_are_removed(capsys):
    assert fails(capsys, "info", "a\nb\x1b[31m").startswith("spqt: error: a b [31m")


@pytest.mark.parametrize("destination", ["in-the-way", "in-the-way/below", "/proc/nothing/model", "source"])
def test_unwritable_destination(destination, source, tmp_path, capsys):
    (tmp_path / "in-the-way").write_text("x")
    before = tree(tmp_path)
    assert str(Path(destination).name) in fails(capsys, "quantize", source, tmp_path / destination, "--force")
    assert tree(tmp_path) == before


def test_full_disk(source, tmp_path, capsys, monkeypatch):
    def full(*unused, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer_module, "save_file", full)
    before = tree(tmp_path)
    line = fails(capsys, "quantize", source, tmp_path / "new" / "model")
    assert "new/model: cannot be written (No space left on device)" in line
    assert tree(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_checksum_mismatch(source, tmp_path, capsys):
    assert cli.main(["quantize", str(source), str(tmp_path / "model")]) == 0
    capsys.readouterr()
    shard = tmp_path / "model" / "model-00003-of-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    for command in (["info", tmp_path / "model", "--verify"], ["generate", tmp_path / "model", "hello"]):
        line = fails(capsys, *command)
        assert f"{shard}: checksum mismatch" in line
        assert "quantise the model again" in line


def test_ctrl_c_while_quantising(source, tmp_path, capsys, monkeypatch):
    read = Checkpoint.read

    def interrupted(self, name):
        if name == "model.layers.1.mlp.down_proj.weight":
            signal.raise_signal(signal.SIGINT)
        return read(self, name)

    monkeypatch.setattr(Checkpoint, "read", interrupted)
    before = tree(tmp_path)
    assert cli.main(["quantize", str(source), str(tmp_path / "model")]) == 130
    assert capsys.readouterr().err == "spqt: interrupted\n"
    assert tree(tmp_path) == before


SLOW = """
import sys, time
from spqt_ti.cli.main import main
from spqt_ti.container import writer
save = writer.save_file
def slow(*arguments, **options):
    save(*arguments, **options)
    print("saved", flush=True)
    time.sleep(60)
writer.save_file = slow
sys.exit(main(["quantize", *sys.argv[1:]]))
"""


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "spqt: interrupted\n"),
        (signal.SIGTERM, 143, ""),
        (signal.SIGHUP, 129, ""),
        (signal.SIGQUIT, 131, ""),
    ],
)
def test_signals_in_another_process(number, code, said, source, tmp_path):
    """In the middle of writing: the temporary directory, which is there then, is gone afterwards."""
    before = tree(tmp_path)
    command = [sys.executable, "-c", SLOW, source, tmp_path / "model"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        assert len(list(tmp_path.iterdir())) == 2
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (code, said)
    assert tree(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_json_has_null_for_what_is_no_number(capsys):
    print_json({"a": [1.5, float("nan")], "b": {"c": (float("inf"), -float("inf"), None, "NaN", True)}})
    assert json.loads(capsys.readouterr().out) == {"a": [1.5, None], "b": {"c": [None, None, None, "NaN", True]}}


# Output ---------------------------------------------------------------------------------------------------------------


def test_reader_of_stdout_goes_away(source):
    script = f"{sys.executable} -m spqt_ti.cli.main info {source} --json | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert result.stderr == ""
    assert result.stdout in ("0\n", "141\n")  # 0 where everything fitted into the pipe before it closed


@pytest.mark.parametrize("arguments", [lambda source: ["info", source], lambda source: ["--version"]])
def test_full_stdout(arguments, source):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "spqt_ti.cli.main", *arguments(source)]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr == "spqt: error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams(closed, source, tmp_path):
    environment = os.environ | {
        "SPQT_CACHE_DIR": str(tmp_path / "cache")
    }  # nobody has quantised the same content there
    script = f"{sys.executable} -m spqt_ti.cli.main info {source} {closed}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stderr) == (0, "")


def test_characters_that_stdout_cannot_show(tmp_path):
    source = write_huggingface(tmp_path / "modèle", CONFIG, WEIGHTS)
    command = [sys.executable, "-m", "spqt_ti.cli.main", "info", source]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "mod?le" in result.stdout


def test_errors_nobody_foresaw_are_not_hidden(monkeypatch):
    monkeypatch.setattr(api, "open_quantized", lambda *unused: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["generate", "model", "hello"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SpqtError("so it is"), "so it is"),
        (MemoryError(), "not enough memory"),
        (PermissionError(13, "no"), "[Errno 13] no"),
    ],
)
def test_known_errors_are_one_line(error, message, monkeypatch, capsys):
    def open_quantized(*unused):
        raise error

    monkeypatch.setattr(api, "open_quantized", open_quantized)
    monkeypatch.setattr(cli, "_silence_stdout", lambda: None)  # pytest's stdout is needed
    assert fails(capsys, "generate", "model", "hello") == f"spqt: error: {message}"


def test_signal_handlers_are_restored(source, capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    cli.main(["info", str(source)])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_installed_command():
    command = shutil.which("spqt", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("the package is not installed in this environment")
    assert subprocess.run([command, "--version"], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["generate", "-m", "x", "-p", "hi"], ("x", None, "hi")),
        (["generate", "--raw", "--model", "x", "hi"], ("x", "hi", None)),
        (["generate", "--model=x", "hi"], ("x", "hi", None)),
        (["generate", "x", "--", "-m"], ("x", "-m", None)),
        (["generate", "x", "--raw", "-n", "3", "hi"], ("x", "hi", None)),
        (["generate", "x", "--raw", "-"], ("x", "-", None)),
    ],
)
def test_places_of_model_and_prompt(argv, found):
    arguments = cli._parse(argv)
    assert (arguments.model, arguments.prompt, arguments.also_prompt) == found


def test_the_model_as_an_option_of_a_command_below_another(capsys):
    assert cli._parse(["bench", "decode", "--rounds", "2", "-m", "x"]).model == "x"
    assert "argument -m: expected a MODEL" in fails(capsys, "generate", "hi", "-m", code=2)
    assert "unrecognized arguments: -m" in fails(capsys, "list", "-m", "x", code=2)


def test_an_empty_message_is_refused_before_the_model_is_loaded(capsys, gguf_source):
    assert fails(capsys, "generate", gguf_source, "", "--raw").endswith("the prompt is empty")


def test_the_repetition_penalty_by_the_name_of_llama_cpp():
    assert cli._parse(["generate", "x", "hi", "--repeat-penalty", "1.1"]).repetition_penalty == 1.1


@pytest.mark.parametrize(
    ("options", "breakers"),
    [
        ([], ("\n", ":", '"', "*")),
        (["--dry-sequence-breaker", "none"], ()),
        (["--dry-sequence-breaker", "\\n", "--dry-sequence-breaker", "a\\\\"], ("\n", "a\\")),
    ],
)
def test_options_of_dry_are_those_of_llama_cpp(options: list[str], breakers: tuple[str, ...]) -> None:
    given = ["--dry-multiplier", "0.8", "--dry-base", "2", "--dry-allowed-length", "3", "--dry-penalty-last-n", "64"]
    sampling = generating.sampling_of(cli._parse(["generate", "x", "hi", *given, *options]))
    assert sampling == Sampling(
        dry_multiplier=0.8, dry_base=2.0, dry_allowed_length=3, dry_penalty_last_n=64, dry_sequence_breakers=breakers
    )
