"""`spqt chat`: turns, commands, and what reaches the model."""

from __future__ import annotations

import io
import sys

import pytest

from spqt_ti import api
from spqt_ti.api import Piece
from spqt_ti.cli import chat_files
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


def test_a_conversation_is_saved_and_goes_on(fake, monkeypatch, tmp_path, capsys):
    file = tmp_path / "saved.json"
    assert chat(monkeypatch, f"one\n/save {file}\n", "--system", "Be brief.") == 0
    assert f"{file}: 3 messages" in capsys.readouterr().err
    assert file.stat().st_mode & 0o777 == 0o600
    assert chat(monkeypatch, f"other\n/load {file}\ntwo\n/clear\nthree\n") == 0
    brief = ("system", "Be brief.")
    assert fake.asked[2] == [brief, ("user", "one"), ("assistant", "answer 1"), ("user", "two")]
    assert fake.asked[3] == [brief, ("user", "three")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("", "not a conversation that /save wrote"),
        ("[]", "expected a JSON object"),
        ('{"format": 2, "messages": []}', "format is 2, not 1"),
        ('{"format": 1, "messages": {}}', "messages are no list"),
        ('{"format": 1, "messages": [3]}', "message 0 is no object of role and content"),
        (
            '{"format": 1, "messages": [{"role": "tool", "content": ""}]}',
            "message 0 has the role 'tool', not system or",
        ),
        ('{"format": 1, "messages": [{"role": "user", "content": []}]}', "message 0 has no text"),
        (
            '{"format": 1, "messages": [{"role": "user", "content": ""}, {"role": "system", "content": ""}]}',
            "message 1 has the role 'system', not user or assistant",
        ),
    ],
)
def test_files_that_are_no_conversation(content, said, fake, monkeypatch, tmp_path, capsys):
    file = tmp_path / "saved.json"
    if content is not None:
        file.write_text(content)
    assert chat(monkeypatch, f"one\n/load {file}\ntwo\n") == 0
    assert said in capsys.readouterr().err
    assert fake.asked[1][0] == ("user", "one")  # what was said is still there


@pytest.mark.parametrize("command", ["/save", "/load", "/save /nowhere/file", "/load /dev/null", "/save /dev/null"])
def test_files_that_cannot_be(command, fake, monkeypatch, capsys):
    assert chat(monkeypatch, f"{command}\none\n") == 0
    error = capsys.readouterr().err
    assert error.startswith("spqt: error: ")
    assert len(fake.asked) == 1


@pytest.fixture
def no_lines(monkeypatch, tmp_path):
    """Readline without lines, and a cache folder of its own."""
    readline = pytest.importorskip("readline", reason="this Python has no readline")
    monkeypatch.setenv("SPQT_CACHE_DIR", str(tmp_path / "cache"))
    readline.clear_history()
    yield readline
    readline.clear_history()


def _typed(readline, *lines: str, keep: bool = True) -> list[str]:
    """The lines that a conversation begins with, after which these are typed."""
    with chat_files.line_history(keep):
        begun = [readline.get_history_item(i + 1) for i in range(readline.get_current_history_length())]
        for line in lines:
            readline.add_history(line)
    readline.clear_history()
    return begun


def test_lines_come_back(no_lines, tmp_path):
    assert _typed(no_lines, "one", "zwei é") == []
    assert _typed(no_lines, "secret", keep=False) == []
    assert _typed(no_lines, *(str(i) for i in range(chat_files.MOST_LINES - 1)), "x" * 5000) == ["one", "zwei é"]
    assert _typed(no_lines)[:2] == ["zwei é", "0"]
    file = tmp_path / "cache" / "chat" / "history"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert len(file.read_text().splitlines()) == chat_files.MOST_LINES


def test_lines_of_two_conversations_at_once(no_lines, tmp_path):
    with chat_files.line_history():
        no_lines.add_history("mine")
        chat_files._keep(tmp_path / "cache" / "chat" / "history", ["theirs"])
    no_lines.clear_history()
    assert _typed(no_lines) == ["theirs", "mine"]


def test_a_history_that_is_none(no_lines, tmp_path):
    assert _typed(no_lines, "one") == []
    file = tmp_path / "cache" / "chat" / "history"
    file.write_bytes(b"\xff\x1b[2J\nfine\n\0")
    assert _typed(no_lines) == ["fine"]
    file.unlink()
    file.mkdir()
    assert _typed(no_lines, "lost") == []


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
