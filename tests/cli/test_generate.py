"""`spqt generate`: what reaches the model, what is printed where."""

from __future__ import annotations

import json
import logging

import pytest
from tiny_models import random_weights, tiny_config, write_huggingface

import spqt_ti
from spqt_ti.api import Generation, Piece
from spqt_ti.cli import main as cli
from spqt_ti.convert.quantize import quantize
from spqt_ti.errors import GenerationError
from spqt_ti.generation.loop import Stats

STATS = Stats(
    prompt_tokens=5,
    prompt_seconds=0.1,
    decode_tokens=2,
    decode_seconds=0.02,
    realised_sparsity=0.316,
    inputs_skipped={"qkv": 0.32, "o": 0.28, "gate_up": 0.31, "down": 0.333},
    bytes_per_token=71_600_000.0,
)
SUMMARY = "prompt 5 tokens, 50.0/s; decoded 2, 100.0/s; 32% of the weights skipped, 71.6 MB read per token\n"
DEFAULTS = {"max_new_tokens": 64, "temperature": 0.0, "seed": 0, "top_k": None, "top_p": None, "chat": False}


class FakeModel:
    """Answers " Paris." in three pieces and remembers what it was asked."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.loaded, self.asked = error, {}, {}

    def load(self, name, **options):
        self.loaded = {"name": name, **options}
        return self

    def stream(self, prompt, **options):
        self.asked = {"prompt": prompt, **options}
        yield Piece(" Par", 1)
        if self.error:
            raise self.error
        yield Piece("is", 2)
        yield Piece(".", 3, "length", STATS)

    def generate(self, prompt, **options):
        pieces = list(self.stream(prompt, **options))
        return Generation("".join(map(str, pieces)), [piece.token for piece in pieces], "length", STATS)


@pytest.fixture
def fake(monkeypatch):
    model = FakeModel()
    monkeypatch.setattr(spqt_ti, "load", model.load)
    return model


def test_text_goes_to_stdout_and_numbers_to_stderr(fake, capsys):
    assert cli.main(["generate", "tiny", "The capital of France is"]) == 0
    output = capsys.readouterr()
    assert output.out == " Paris.\n"
    assert output.err == SUMMARY
    assert fake.loaded == {
        "name": "tiny",
        "backend": None,
        "sparsity": 0.0,
        "threads": None,
        "context": None,
        "calibration_text": None,
        "exact": False,
    }
    assert fake.asked == {"prompt": "The capital of France is", **DEFAULTS}


def test_what_auto_took_goes_to_stderr(fake, capsys, monkeypatch):
    def load(*arguments, **options):
        logging.getLogger("spqt_ti.backend").info("backend auto: cpu (this machine's CPU)")
        return fake.load(*arguments, **options)

    monkeypatch.setattr(spqt_ti, "load", load)
    assert cli.main(["generate", "tiny", "hello", "--json"]) == 0
    output = capsys.readouterr()
    assert output.err == "spqt: backend auto: cpu (this machine's CPU)\n"
    assert json.loads(output.out)["text"] == " Paris."


def test_options_reach_the_model(fake):
    options = "--sparsity 0.4 --chat --threads 2 --max-new-tokens 9 --temperature 0.7 --top-k 40 --top-p 0.9 --seed 3"
    machine = "--context 128 --backend cpu --calibration-text sample.txt --exact"
    assert cli.main(["generate", "tiny", "hello", *options.split(), *machine.split()]) == 0
    loaded = {"backend": "cpu", "sparsity": 0.4, "threads": 2, "context": 128, "calibration_text": "sample.txt"}
    assert fake.loaded == {"name": "tiny", "exact": True, **loaded}
    expected = {"max_new_tokens": 9, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "seed": 3, "chat": True}
    assert fake.asked == {"prompt": "hello", **expected}


def test_policy_file(fake):
    assert cli.main(["generate", "tiny", "hello", "--policy", "policy.json"]) == 0
    assert fake.loaded["sparsity"] == "policy.json"


def test_json(fake, capsys):
    assert cli.main(["generate", "tiny", "hello", "--json"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert json.loads(output.out) == {
        "text": " Paris.",
        "token_ids": [1, 2, 3],
        "finish_reason": "length",
        "prompt_tokens": 5,
        "prompt_seconds": 0.1,
        "decode_tokens": 2,
        "decode_seconds": 0.02,
        "realised_sparsity": STATS.realised_sparsity,
        "inputs_skipped": STATS.inputs_skipped,
        "bytes_per_token": 71_600_000.0,
        "prompt_tokens_per_second": 50.0,
        "decode_tokens_per_second": 100.0,
    }


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "spqt: interrupted\n"),
        (GenerationError("the context is full"), 1, "spqt: error: the context is full\n"),
    ],
)
def test_a_cut_off_text_ends_its_line(error, code, said, fake, capsys):
    fake.error = error
    assert cli.main(["generate", "tiny", "hello"]) == code
    output = capsys.readouterr()
    assert output.out == " Par\n"
    assert output.err == said


def test_prompt_that_is_not_utf8(fake, capsys):
    assert cli.main(["generate", "tiny", "caf\udce9"]) == 1
    assert capsys.readouterr().err == "spqt: error: the prompt is not valid UTF-8\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    config = tiny_config()
    return quantize(write_huggingface(folder / "source", config, random_weights(config)), folder / "model").path


def test_a_real_model(tiny, capsys):
    command = ["generate", str(tiny), "The quick brown fox", "--max-new-tokens", "5"]
    assert cli.main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert 1 <= len(report["token_ids"]) <= 5
    assert set(report["inputs_skipped"].values()) <= {0.0}
    assert cli.main(["info", str(tiny), "--json"]) == 0
    # What a dense token reads is what `info` says; the first token comes from the prompt.
    if report["decode_tokens"]:
        assert report["bytes_per_token"] == json.loads(capsys.readouterr().out)["dense_bytes_per_token"]
    assert cli.main(command) == 0
    output = capsys.readouterr()
    assert output.out == report["text"] + "\n"
    assert output.err.startswith("prompt ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sparsity", "1.5"], "sparsity must be between 0 and 0.99"),
        (["--sparsity", "nan"], "sparsity must be between 0 and 0.99"),
        (["--policy", "/nowhere.json"], "/nowhere.json: cannot read the policy"),
        (["--threads", "0"], "threads must be between 1 and"),
        (["--backend", "abacus"], "backend 'abacus' is not available"),
        (["--context", "0"], "context must be between 1 and 256, not 0"),
        (["--max-new-tokens", "0"], "max_new_tokens must be 1 or more"),
        (["--temperature", "-1"], "temperature must be 0 or more"),
        (["--top-p", "2"], "top_p must be above 0"),
        (["--top-k", "0"], "top_k must be 1 or more"),
    ],
    ids=str,
)
def test_values_out_of_range(options, message, tiny, capsys):
    assert cli.main(["generate", str(tiny), "hello", *options]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("spqt: error: ")
    assert message in line


@pytest.mark.parametrize("prompt", ["", "fox " * 400], ids=["empty", "too long"])
def test_prompts_that_cannot_be_served(prompt, tiny, capsys):
    assert cli.main(["generate", str(tiny), prompt]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("spqt: error: ")
