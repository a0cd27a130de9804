"""`spqt chat`: turns, commands, and what reaches the model."""

from __future__ import annotations

import io
import sys

import pytest

from spqt_ti import api
from spqt_ti.api import Piece
from spqt_ti.cli import main as cli
from spqt_ti.errors import GenerationError
from spqt_ti.generation.loop import Stats
from spqt_ti.generation.sampling import Sampling

STATS = Stats(9, 0.1, 2, 0.02, 0.4, {}, 71_600_000.0, 5)


class FakeModel:
    """Answers "answer N" and remembers what it was asked. It is its own container."""

    chat_template: str | None = "template"

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, str]]] = []
        self.options, self.policies = {}, []
        self.error: BaseException | None = None
        self.reason = "stop"

    def open(self, name, backend):
        return self

    def load(self, container, **options):
        return self

    def stream(self, messages, **options):
        self.asked.append([(message["role"], message["content"]) for message in messages])
        self.options = options
        yield Piece("answer ", 1)
        if self.error:
            error, self.error = self.error, None
            raise error
        yield Piece(str(len(self.asked)), 2, self.reason, STATS)

    def calibrate(self):
        return self

    def policy(self, level):
        return level

    def apply(self, policy):
        self.policies.append(policy)


@pytest.fixture
def fake(monkeypatch) -> FakeModel:
    model = FakeModel()
    monkeypatch.setattr(api, "open_quantized", model.open)
    monkeypatch.setattr(api, "load", model.load)
    return model


def chat(monkeypatch, text: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return cli.main(["chat", "model", *arguments])


def test_turns(fake, monkeypatch, capsys):
    assert chat(monkeypatch, "one\n\ntwo\n") == 0
    first = [("user", "one")]
    assert fake.asked == [first, [*first, ("assistant", "answer 1"), ("user", "two")]]
    assert fake.options == {"max_new_tokens": 1024, "sampling": Sampling(), "stop": None, "on_overflow": "stop"}
    output = capsys.readouterr()
    assert output.out == "answer 1\nanswer 2\n"
    line = "[4 new of 9 tokens; 100.0 tokens/s, 40% of the weights skipped, 71.6 MB read per token]\n"
    assert output.err == line * 2


def test_options(fake, monkeypatch):
    arguments = ["--system", "Be brief.", "--temperature", "0.5", "--min-p", "0.1", "--stop", "x", "--stop", "y"]
    assert chat(monkeypatch, "one\n", *arguments, "--repetition-penalty", "1.1", "--max-new-tokens", "7") == 0
    assert fake.asked == [[("system", "Be brief."), ("user", "one")]]
    sampling = Sampling(0.5, min_p=0.1, repetition_penalty=1.1)
    assert fake.options == {"max_new_tokens": 7, "sampling": sampling, "stop": ["x", "y"], "on_overflow": "stop"}


def test_a_message_of_several_lines(fake, monkeypatch):
    assert chat(monkeypatch, '"""one\n/two\n\nthree"""\n"""four\n') == 0
    assert [turn[-1][1] for turn in fake.asked] == ["one\n/two\n\nthree", "four"]


def test_clear_system_and_again(fake, monkeypatch):
    assert chat(monkeypatch, "one\n/clear\ntwo\n/again\n/system Be brief.\nthree\n/system\nfour\n") == 0
    brief = ("system", "Be brief.")
    two = [("user", "two")]
    assert fake.asked == [[("user", "one")], two, two, [brief, ("user", "three")], [("user", "four")]]


def test_sparsity(fake, monkeypatch, capsys):
    assert chat(monkeypatch, "/sparsity 0.4\n/sparsity 0\n/sparsity 40\n/sparsity much\n") == 0
    assert fake.policies == [0.4, None]
    assert [line.removeprefix("spqt: error: ")[:40] for line in capsys.readouterr().err.splitlines()] == [
        "sparsity must be between 0 and 0.99, not",
        "/sparsity takes a share such as 0.4, not",
    ]


def test_exit_and_unknown_commands(fake, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        chat(monkeypatch, "/nothing\n/again\n/help\n/exit\none\n")
    assert stop.value.code == 0
    assert not fake.asked
    error = capsys.readouterr().err
    assert "there is no command /nothing; /help lists those that there are" in error
    assert "there is no message to answer again" in error
    assert "/clear           begin anew" in error


def test_an_answer_that_is_stopped_is_kept(fake, monkeypatch, capsys):
    fake.error = KeyboardInterrupt()
    assert chat(monkeypatch, "one\ntwo\n") == 0
    assert fake.asked[1] == [("user", "one"), ("assistant", "answer "), ("user", "two")]
    assert "(stopped)" in capsys.readouterr().err


def test_a_message_that_fails_is_taken_back(fake, monkeypatch, capsys):
    fake.error = GenerationError("9 tokens do not fit")
    assert chat(monkeypatch, "one\ntwo\n") == 0
    assert fake.asked[1] == [("user", "two")]
    assert "spqt: error: 9 tokens do not fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reason", "said"), [("context", "--on-overflow slide forgets"), ("length", "--max-new-tokens")]
)
def test_a_cut_answer_is_said(reason, said, fake, monkeypatch, capsys):
    fake.reason = reason
    assert chat(monkeypatch, "one\n") == 0
    assert said in capsys.readouterr().err


def test_a_model_without_a_template(fake, monkeypatch, capsys):
    fake.chat_template = None
    assert chat(monkeypatch, "one\n") == 1
    assert "no chat template: spqt generate --raw" in capsys.readouterr().err
