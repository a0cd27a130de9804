"""`spqt generate`: what reaches the model, what is printed where."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from importlib.util import find_spec

import pytest
from tiny_models import random_weights, tiny_config, write_huggingface

from spqt_ti import api
from spqt_ti.api import Generation, Piece
from spqt_ti.cli import main as cli
from spqt_ti.convert.quantize import quantize
from spqt_ti.errors import GenerationError
from spqt_ti.generation.loop import Stats
from spqt_ti.generation.sampling import Sampling
from spqt_ti.model.runner import Llama

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
constrained = pytest.mark.skipif(find_spec("llguidance") is None, reason="llguidance is not installed")
DEFAULTS = {
    "max_new_tokens": 64,
    "sampling": Sampling(),
    "chat": False,
    "stop": None,
    "constraint": None,
    "on_overflow": "stop",
}


class FakeModel:
    """Answers " Paris." in three pieces and remembers what it was asked. It is its own container."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.opened, self.loaded, self.asked = error, (), {}, {}
        self.chat_template: str | None = None
        self.pieces = [Piece(" Par", 1), Piece("is", 2), Piece(".", 3, "length", STATS)]

    def open(self, name, backend):
        self.opened = name, backend
        return self

    def load(self, container, **options):
        assert container is self
        self.loaded = options
        return self

    def stream(self, prompt, **options):
        self.asked = {"prompt": prompt, **options}
        for piece in self.pieces:
            yield piece
            if self.error:
                raise self.error

    def generate(self, prompt, **options):
        pieces = list(self.stream(prompt, **options))
        return Generation("".join(map(str, pieces)), [piece.token for piece in pieces], "length", STATS)


@pytest.fixture
def fake(monkeypatch):
    model = FakeModel()
    monkeypatch.setattr(api, "open_quantized", model.open)
    monkeypatch.setattr(api, "check_prompt", lambda container, request, context: None)
    monkeypatch.setattr(api, "load", model.load)
    return model


def test_text_goes_to_stdout_and_numbers_to_stderr(fake, capsys):
    assert cli.main(["generate", "tiny", "The capital of France is"]) == 0
    output = capsys.readouterr()
    assert output.out == " Paris.\n"
    assert output.err == SUMMARY + "spqt: cut off after 64 tokens: ask for more with --max-new-tokens\n"
    assert fake.opened == ("tiny", None)
    assert fake.loaded == {
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

    monkeypatch.setattr(api, "load", load)
    assert cli.main(["generate", "tiny", "hello", "--json"]) == 0
    output = capsys.readouterr()
    assert output.err == "spqt: backend auto: cpu (this machine's CPU)\n"
    assert json.loads(output.out)["text"] == " Paris."


def test_options_reach_the_model(fake):
    options = "--sparsity 0.4 --chat --threads 2 --max-new-tokens 9 --temperature 0.7 --top-k 40 --top-p 0.9 --seed 3"
    machine = "--context 128 --backend cpu --calibration-text sample.txt --exact"
    assert cli.main(["generate", "tiny", "hello", *options.split(), *machine.split()]) == 0
    loaded = {"backend": "cpu", "sparsity": 0.4, "threads": 2, "context": 128, "calibration_text": "sample.txt"}
    assert fake.opened == ("tiny", "cpu")
    assert fake.loaded == {"exact": True, **loaded}
    sampling = Sampling(0.7, 40, 0.9, 3)
    assert fake.asked == {"prompt": "hello", **DEFAULTS, "max_new_tokens": 9, "sampling": sampling, "chat": True}


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
        "prompt_tokens_reused": 0,
        "slides": 0,
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


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("stop", ""),
        ("length", "spqt: cut off after 9 tokens: ask for more with --max-new-tokens\n"),
        ("context", "spqt: cut off because the context is full: --context gives more, --on-overflow slide goes on\n"),
    ],
)
def test_why_a_text_was_cut_off(reason, said, fake, capsys):
    fake.pieces = [Piece("x", 1, reason, STATS)]
    assert cli.main(["generate", "tiny", "hello", "--max-new-tokens", "9"]) == 0
    assert capsys.readouterr().err == SUMMARY + said


@pytest.mark.parametrize(
    ("template", "option", "chat"),
    [("{{ x }}", None, True), (None, None, False), ("{{ x }}", "--raw", False), (None, "--chat", True)],
)
def test_the_chat_template_is_used_where_there_is_one(template, option, chat, fake):
    fake.chat_template = template
    assert cli.main(["generate", "tiny", "hello", *([option] if option else [])]) == 0
    assert fake.asked["chat"] is chat


def test_controls_are_shown_and_not_sent_to_a_terminal(fake, capsys, monkeypatch):
    fake.pieces = [Piece("a\x1b[31m\x9b\tb\n", 1, "stop", STATS)]
    assert cli.main(["generate", "tiny", "hello"]) == 0
    assert capsys.readouterr().out == "a\x1b[31m\x9b\tb\n\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["generate", "tiny", "hello"]) == 0
    assert capsys.readouterr().out == "a\u241b[31m\ufffd\tb\n\n"


# Prompts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "read"), [(b"hi there\n", "hi there"), ("naïve\n\n".encode(), "naïve\n"), (b"-", "-")]
)
def test_a_prompt_from_stdin(typed, read, fake, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
    assert cli.main(["generate", "tiny", "-"]) == 0
    assert fake.asked["prompt"] == read


def test_a_prompt_from_a_file(fake, tmp_path):
    (tmp_path / "prompt.txt").write_text("long ago", encoding="utf-8")
    assert cli.main(["generate", "tiny", "--file", str(tmp_path / "prompt.txt")]) == 0
    assert fake.asked["prompt"] == "long ago"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--file", "/nowhere.txt"], "/nowhere.txt: cannot be read: No such file"),
        (["-"], "stdin is not UTF-8"),
        (["caf\udce9"], "the prompt is not valid UTF-8 text (lone surrogate U+DCE9 at character 3)"),
    ],
)
def test_prompts_that_cannot_be_had(arguments, message, fake, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    assert cli.main(["generate", "tiny", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not fake.opened


@pytest.mark.parametrize("arguments", [[], ["hello", "--file", "x"]])
def test_one_prompt_is_wanted(arguments, fake, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["generate", "tiny", *arguments])
    assert stop.value.code == 2
    assert "give a PROMPT, - to read it from stdin, or --file FILE" in capsys.readouterr().err


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
    assert any(line.startswith("prompt ") for line in output.err.splitlines())


def test_a_window_that_slides(tiny, capsys):
    command = ["generate", str(tiny), "-p", "fox " * 40, "-c", "24", "-n", "40", "-t", "1", "-s", "3", "--raw"]
    assert cli.main([*command, "--on-overflow", "slide", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["finish_reason"] == "stop" or len(report["token_ids"]) == 40
    assert report["prompt_tokens"] == 4 + 10
    assert report["slides"] == (len(report["token_ids"]) - 1) // 11


def test_beams(tiny, capsys):
    command = ["generate", str(tiny), "The quick brown fox", "--max-new-tokens", "4", "--beams", "3"]
    assert cli.main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (best,) = report["beams"]
    assert cli.main(command) == 0
    output = capsys.readouterr()
    assert output.out == best["text"] + "\n"
    assert any(line.startswith("prompt ") for line in output.err.splitlines())
    assert cli.main([*command, "--best", "2"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert lines[0].startswith(f"[1: log-probability {best['log_probability']:.2f}, ")
    assert lines[1].startswith("[2: ")


@constrained
def test_forms_of_answers(tiny, tmp_path, capsys):
    schema, lark, gbnf = tmp_path / "schema.json", tmp_path / "answer.lark", tmp_path / "answer.gbnf"
    schema.write_text('{"const": 7}')
    lark.write_text('start: "x" /[0-9]/')
    gbnf.write_text('root ::= "x" [0-9]')
    command = ["generate", str(tiny), "The quick brown fox"]
    for options, expected in (
        (["--json-schema", str(schema)], "7"),
        (["--json-schema", '{"const": "a"}'], '"a"'),
        (["--grammar", str(lark)], r"x\d"),
        (["--grammar", str(gbnf)], r"x\d"),
        (["--regex", "a{3}|b{3}"], "aaa|bbb"),
    ):
        assert cli.main([*command, *options]) == 0
        assert re.fullmatch(expected, capsys.readouterr().out.removesuffix("\n"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sparsity", "1.5"], "sparsity must be between 0 and 0.99"),
        (["--sparsity", "40"], "sparsity must be between 0 and 0.99, not 40.0; did you mean 0.4?"),
        (["--sparsity", "nan"], "sparsity must be between 0 and 0.99"),
        (["--policy", "/nowhere.json"], "/nowhere.json: cannot read the policy"),
        (["--threads", "99999"], "threads must be between 1 and"),
        (["--backend", "abacus"], "backend 'abacus' is not available"),
        (["--context", "0"], "context must be between 1 and 256, not 0"),
        (["--max-new-tokens", "0"], "max_new_tokens must be 1 or more"),
        (["--temperature", "-1"], "temperature must be 0 or more"),
        (["--top-p", "2"], "top_p must be above 0"),
        (["--top-k", "0"], "top_k must be 1 or more"),
        (["--beams", "2", "--on-overflow", "slide"], "does not go with --on-overflow slide"),
        (["--beams", "65"], "there may be 64 beams, not 65"),
        (["--beams", "2", "--temperature", "1"], "it goes with no option of sampling"),
        (["--beams", "2", "--stop", "a"], "nor with --stop"),
        (["--beams", "2", "--best", "3"], "--best 3 needs --beams 3 or more"),
        (["--best", "3"], "--best 3 needs --beams 3 or more"),
        (["--json-schema", "{"], "the JSON schema is no JSON object"),
        pytest.param(["--json-schema", '{"type": "foo"}'], "followed: Invalid type: foo", marks=constrained),
        (["--json-schema", "/nowhere.json"], "/nowhere.json"),
        (["--grammar", "/nowhere.lark"], "/nowhere.lark"),
        pytest.param(["--regex", "("], "the expression cannot be followed", marks=constrained),
    ],
    ids=str,
)
def test_values_out_of_range(options, message, tiny, capsys, monkeypatch):
    monkeypatch.setattr(Llama, "__init__", None)  # nothing is loaded for what cannot be served
    assert cli.main(["generate", str(tiny), "hello", *options]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("spqt: error: ")
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["", "--raw"], "the prompt is empty"),
        (["fox " * 400, "--raw"], "do not fit the context of 256; the model has no more"),
        (
            ["fox " * 40, "--context", "20"],
            "do not fit the context of 20; ask for a longer one with context= (--context)",
        ),
    ],
    ids=["empty", "too long", "context"],
)
def test_prompts_that_cannot_be_served(arguments, message, tiny, capsys, monkeypatch):
    monkeypatch.setattr(Llama, "__init__", None)
    assert cli.main(["generate", str(tiny), *arguments]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("spqt: error: ")
    assert message in output.err


def test_prefix_cache(tmp_path, capsys):
    """The second process begins with the first one's prompt, and answers the same."""
    config = tiny_config(eos_token_ids=())
    source = write_huggingface(tmp_path / "source", config, random_weights(config))
    model = str(quantize(source, tmp_path / "quantized", progress=False).path)
    file = tmp_path / "prefix"
    found = []
    for prompt, more in (("The quick brown fox", []), *[("The quick brown fox jumps", [f"--prefix-cache={file}"])] * 2):
        assert cli.main(["generate", model, prompt, "--json", "--threads=1", *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[1]["token_ids"] == found[2]["token_ids"]
    assert [one["prompt_tokens_reused"] for one in found[1:]] == [0, found[1]["prompt_tokens"] - 1]
    assert cli.main(["generate", model, "The", "--threads=1", "--exact", f"--prefix-cache={file}"]) == 1
    assert "the prefix is of exact False, and this is exact True; remove the file" in capsys.readouterr().err
    assert cli.main(["generate", model, "The", "--threads=1", f"--prefix-cache={tmp_path}/none/x"]) == 1
    assert "the folder for the prefix is not there" in capsys.readouterr().err
