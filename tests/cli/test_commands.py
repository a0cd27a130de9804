"""pull, quantize and info: what they report, for people and as JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from tiny_models import random_weights, tiny_config, write_gguf, write_huggingface

from spqt_ti import quantization
from spqt_ti.api import open_quantized
from spqt_ti.children import python_command
from spqt_ti.cli import main as cli
from spqt_ti.container import CLASSES, Container
from spqt_ti.container.matrices import Storage
from spqt_ti.convert.choices import parse_storage
from spqt_ti.convert.quantize import quantize_checkpoint
from spqt_ti.formats import layout as layouts
from spqt_ti.formats import schemes
from spqt_ti.formats.schemes import SCHEMES
from spqt_ti.sources import registry
from spqt_ti.sources.open import open_checkpoint

CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG)
PARAMETERS = sum(values.size for values in WEIGHTS.values())


def succeeds(capsys, *arguments: object) -> str:
    """Run a command and return its stdout; nothing may be on stderr (there is no terminal)."""
    assert cli.main([str(argument) for argument in arguments]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


@pytest.fixture
def source(tmp_path):
    return write_huggingface(tmp_path / "source", CONFIG, WEIGHTS)


@pytest.fixture
def quantised(source, tmp_path, capsys):
    succeeds(capsys, "quantize", source, tmp_path / "model")
    return tmp_path / "model"


def test_help_names_every_choice(capsys):
    with pytest.raises(SystemExit):
        cli.main(["quantize", "--help"])
    text = capsys.readouterr().out
    for name in (*SCHEMES, *layouts.LAYOUTS, *(name for name in CLASSES if name != "embedding")):
        assert name in text


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_quantize(layout, source, tmp_path, capsys):
    line = succeeds(capsys, "quantize", source, tmp_path / "model", "--layout", layout)
    assert line.startswith(f"{tmp_path / 'model'}: {PARAMETERS / 1e6:.1f} M parameters in ")
    assert f"(q4_k, {layout})" in line
    assert Container.open(tmp_path / "model").summary() == f"q4_k, {layout}"


def test_quantize_json_and_force(source, quantised, capsys):
    report = json.loads(succeeds(capsys, "quantize", source, quantised, "--layout", "row", "--force", "--json"))
    assert report["summary"] == "q4_k, row"
    assert report["storage"]["down"] == "q4_k, row"
    assert report["storage"]["head"] == "q8_0, row"
    assert report["parameters"] == PARAMETERS
    assert report["seconds"] > 0


def test_quantize_pruned_and_rotated(source, tmp_path, capsys, monkeypatch):
    windows = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 32)).tolist()
    monkeypatch.setattr(quantization, "_windows", lambda *_: windows)
    plan, text = tmp_path / "plan.json", tmp_path / "text"
    plan.write_text('{"spqt_plan": 1, "rates": [0, 0.4]}')
    text.write_text("a text of words " * 40)
    line = succeeds(
        capsys, "quantize", source, tmp_path / "model", "--plan", plan, "--pruning", "channels", "--rotate", "heads",
        "--text", text, "--tokens", 256,
    )  # fmt: skip
    assert f"{(PARAMETERS - 3 * 64 * 192) / 1e6:.1f} M parameters" in line
    assert "[320, 192]" in (shown := succeeds(capsys, "info", tmp_path / "model"))
    assert "[192, 192]" in shown
    report = json.loads(succeeds(capsys, "info", tmp_path / "model", "--json"))
    assert [one["kind"] for one in report["transformations"]] == ["pruning", "rotation"]
    assert report["config"]["intermediate_sizes"] == [160, 96]
    arguments = ("perplexity", tmp_path / "model", "--text", text, "--context", 64)
    assert cli.main([str(argument) for argument in arguments]) == 1
    assert "is the text that the model was quantised with" in capsys.readouterr().err


def test_gptq_is_the_default_where_its_calibration_comes_along(source, tmp_path, capsys, monkeypatch):
    windows = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 256)).tolist()
    monkeypatch.setattr(quantization, "stored_windows", lambda _: windows)
    cases = {
        (): "(q4_k, zigzag, by GPTQ)",
        ("--method", "rtn"): "(q4_k, zigzag)",
        ("--layout", "row"): "(q4_k, row)",
        ("--scheme", "q8_0"): "(q8_0, zigzag)",
    }
    monkeypatch.setattr(quantization, "DEFAULT_TOKENS", 512)
    monkeypatch.setattr(quantization, "WINDOW", 256)
    for options, expected in cases.items():
        assert expected in succeeds(capsys, "quantize", source, tmp_path / "model", "--force", *options)
        made = Container.open(tmp_path / "model").transformations
        assert [one["kind"] for one in made] == (["gptq"] if "by GPTQ" in expected else [])


def test_a_person_is_told_the_method(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(["quantize", str(source), str(tmp_path / "model")]) == 0
    message = capsys.readouterr().err
    assert "--method gptq loses half as much in as many bytes and takes about a minute on two cores" in message


def test_info_of_a_container(quantised, capsys):
    report = json.loads(succeeds(capsys, "info", quantised, "--json"))
    container = Container.open(quantised)
    sizes = {name: container.read(name).nbytes for name in container.names()}
    # As kernels hold them: bands of 256 rows, but one of up to 64 rows has 48 bytes a column instead of 144.
    layers = sum(
        m.cols * (144 * -(-m.rows // 256) - (96 if 0 < m.rows % 256 <= 64 else 0)) for m in container.layer_matrices()
    )
    assert report["kind"] == "quantised"
    assert report["architecture"] == "LlamaForCausalLM"
    assert report["config"]["hidden_size"] == 192
    assert report["bytes"] == sum(sizes.values())
    assert report["dense_bytes_per_token"] == layers + sizes["lm_head.q8_0"]
    assert 0.5625 <= report["bytes_per_weight"] < 0.63
    assert report["fingerprint"] == container.fingerprint
    assert report["source_sha256"] == container.source.sha256
    assert len(report["matrices"]) == 10
    assert report["matrices"][1]["parts"] == {"q_proj": 192, "k_proj": 96, "v_proj": 96}
    text = succeeds(capsys, "info", quantised, "--verify")
    assert "LlamaForCausalLM" in text
    assert "q4_k, zigzag" in text
    assert "self_attn.qkv_proj    [384, 192]" in text


def test_info_in_a_process_of_its_own(quantised, tmp_path):
    """No other command has started the kernels' runtime there."""
    done = subprocess.run(
        python_command("spqt_ti.cli.main", "info", str(quantised)),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "decoding at 50% sparsity on cpu" in done.stdout


def test_info_of_layers_that_differ(source, tmp_path, capsys):
    """One matrix of the second of two layers is stored in another way."""
    storage = parse_storage() | {"model.layers.1.mlp.down_proj": Storage(schemes.find("q8_0"), "row")}
    quantize_checkpoint(open_checkpoint(source), tmp_path / "model", storage, "source", progress=False)
    text = succeeds(capsys, "info", tmp_path / "model")
    found = dict(re.findall(r"^matrices of (.*):\n((?:  .*\n)+)", text, re.MULTILINE))
    assert list(found) == ["the vocabulary", "layers 0-1", "layer 0", "layer 1"]
    assert [line.split()[0] for line in found["layers 0-1"].splitlines()] == [
        "self_attn.qkv_proj", "=", "self_attn.o_proj", "mlp.gate_up_proj", "="
    ]  # fmt: skip
    assert max(map(len, re.findall(r"^  .* bytes$|^    = .*", text, re.MULTILINE))) <= 80
    assert re.search(r"mlp.down_proj .* q4_k +zigzag", found["layer 0"])
    assert re.search(r"mlp.down_proj .* q8_0 +row", found["layer 1"])
    assert "qkv, o, gate_up, down of layer 0: sparse" in text
    assert "down of layer 1: dense: row layout" in text


@pytest.mark.parametrize("kind", ["Hugging Face directory", "GGUF file"])
def test_info_of_a_source(kind, source, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SPQT_CACHE_DIR", str(tmp_path / "cache"))  # another test may have quantised the same content
    if kind == "GGUF file":
        source = write_gguf(tmp_path / "source.gguf", CONFIG, WEIGHTS)
    report = json.loads(succeeds(capsys, "info", source, "--json"))
    assert report["kind"] == kind
    assert report["parameters"] == PARAMETERS
    assert report["bytes"] >= 4 * PARAMETERS
    assert f"{PARAMETERS:,}" in succeeds(capsys, "info", source)


def test_info_follows_a_source_to_its_quantised_copy(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SPQT_CACHE_DIR", str(tmp_path / "cache"))
    assert "not quantised yet" in succeeds(capsys, "info", source)
    copy = open_quantized(source).path
    report = json.loads(succeeds(capsys, "info", source, "--json"))
    assert (report["path"], report["copy_of"], report["kind"]) == (str(copy), str(source), "quantised")
    text = succeeds(capsys, "info", source, "--sparsity", "0.5")
    assert "qkv, o, gate_up, down: sparse: 50% of the inputs active; skipping pays up to 90%" in text


def test_pull(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(registry, "pull", lambda name: tmp_path / name)
    assert succeeds(capsys, "pull", "smollm2-135m") == f"{tmp_path / 'smollm2-135m'}\n"
    report = json.loads(succeeds(capsys, "pull", "smollm2-135m", "--json"))
    assert report == {"name": "smollm2-135m", "path": str(tmp_path / "smollm2-135m")}


def test_pull_lists_what_is_known(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SPQT_CACHE_DIR", str(tmp_path))
    assert succeeds(capsys, "pull").startswith("smollm2-135m  ")
    known = json.loads(succeeds(capsys, "pull", "--json"))["models"]
    assert {model["name"]: model["fetched"] for model in known} == {"smollm2-135m": False, "reglu-tiny": True}


def test_pull_of_an_unknown_name(capsys):
    assert cli.main(["pull", "no-such-model"]) == 1
    assert "known: smollm2-135m" in capsys.readouterr().err
