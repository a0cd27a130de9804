"""`spqt chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spqt_ti.cli import chat_files, generating, options
from spqt_ti.cli.generate import ended, print_stream
from spqt_ti.cli.output import megabytes, print_error
from spqt_ti.cli.signals import held_back
from spqt_ti.errors import GenerationError, SpqtError

if TYPE_CHECKING:
    from spqt_ti.api import Model, Piece
    from spqt_ti.generation.loop import Stats
    from spqt_ti.generation.sampling import Sampling

_MORE = "/clear begins anew, --context gives more, --on-overflow slide forgets the oldest turns"
_QUOTES = '"""'  # around a message of several lines
_HELP = f"""\
/system TEXT     begin anew with this system prompt (none without TEXT)
/clear           begin anew
/again           answer the last message once more
/save FILE       write the conversation to a file
/load FILE       go on with the conversation of a file
/sparsity S      skip this share of the inputs from now on
/help            this list
/exit            leave, as Ctrl-D does
{_QUOTES} begins and ends a message of several lines. Ctrl-C stops an answer."""


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "chat",
        help="have a conversation",
        description="Have a conversation. The KV cache keeps what was said, so that a turn computes only what is new. "
        "Lines that begin with / are commands; /help lists them.",
    )
    options.add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument(
        "-n",
        "--max-new-tokens",
        type=options.count,
        default=1024,
        metavar="N",
        help="of an answer (default: %(default)s)",
    )
    parser.add_argument(
        "--no-history", action="store_true", help="neither read nor keep the lines that are typed (arrow keys)"
    )
    generating.add_sparsity(parser)
    generating.add_sampling(parser)
    generating.add_machine(parser)
    generating.add_prefix_cache(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Load the model, then take turns until the input ends. Raises GenerationError for a model without a template."""
    with held_back():
        from spqt_ti import api
    sampling = generating.sampling_of(arguments)
    if arguments.policy is None:
        api.check_level(arguments.sparsity)
    container = api.open_quantized(arguments.model, arguments.backend)
    if container.chat_template is None:
        raise GenerationError("this model has no chat template: spqt generate --raw goes on from a text")
    model = generating.load(arguments, container)
    conversation = Conversation(
        model, sampling, arguments.stop, arguments.max_new_tokens, arguments.system, arguments.on_overflow
    )
    with contextlib.ExitStack() as opened:
        if sys.stdin.isatty():
            opened.enter_context(chat_files.line_history(keep=not arguments.no_history))
            print(f"{arguments.model}: /help lists commands, Ctrl-D leaves", file=sys.stderr)
        opened.enter_context(generating.prefix_cache(model, arguments.prefix_cache))
        for message in _messages():
            _turn(conversation, message)


@dataclass
class Conversation:
    """Messages so far, and how the model answers them."""

    model: Model
    sampling: Sampling
    stop: list[str] | None = None
    max_new_tokens: int = 1024
    system: str | None = None
    on_overflow: str = "stop"
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget what was said."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, message: str) -> Iterator[Piece]:
        """Stream the answer to a message. Where it fails, the message is taken back."""
        self.messages.append({"role": "user", "content": message})
        pieces: list[str] = []
        try:
            for piece in self.model.stream(
                self.messages,
                max_new_tokens=self.max_new_tokens,
                sampling=self.sampling,
                stop=self.stop,
                on_overflow=self.on_overflow,
            ):
                pieces.append(piece.text)
                yield piece
        except SpqtError:
            self.messages.pop()
            raise
        finally:
            if self.messages and self.messages[-1]["role"] == "user" and pieces:  # also of an answer that was stopped
                self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def take_back(self) -> str | None:
        """Remove the last message and its answer; the message, or None where there is none."""
        while self.messages and self.messages[-1]["role"] != "system":
            last = self.messages.pop()
            if last["role"] == "user":
                return last["content"]
        return None


def _messages() -> Iterator[str]:
    """Lines of stdin, and messages of several lines, until it ends. Ctrl-C gives up the line at work."""
    while True:
        try:
            line = _line(">>> ")
            if line is None:
                return
            if line.lstrip().startswith(_QUOTES):
                line = _rest_of(line.lstrip().removeprefix(_QUOTES))
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            print("\n(Ctrl-D or /exit leaves)", file=sys.stderr)
            continue
        if line.strip():
            yield line


def _line(prompt: str) -> str | None:
    """A line without its end; None at the end of the input. A prompt is shown to people only."""
    try:
        return input(prompt if sys.stdin.isatty() else "")
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise GenerationError(f"stdin is not UTF-8 text: {error}") from error


def _rest_of(first: str) -> str:
    """A message up to the closing quotes, or the end of the input."""
    lines = [first]
    while not lines[-1].rstrip().endswith(_QUOTES):
        line = _line("... ")
        if line is None:
            return "\n".join(lines)
        lines.append(line)
    lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
    return "\n".join(lines)


def _turn(conversation: Conversation, message: str) -> None:
    """Do a command, or answer a message. Errors are said, and the conversation goes on."""
    try:
        if message.startswith("/"):
            name, _, rest = message[1:].partition(" ")
            command = _COMMANDS.get(name)
            if command is None:
                raise GenerationError(f"there is no command /{name}; /help lists those that there are")
            command(conversation, rest.strip())
        else:
            _answer(conversation, message)
    except SpqtError as error:
        print_error(str(error))


def _answer(conversation: Conversation, message: str) -> None:
    last = None
    try:
        last = print_stream(conversation.ask(message))
    except KeyboardInterrupt:
        print("(stopped)", file=sys.stderr)
    if last is not None and last.stats is not None:
        print(_summary(last.stats), file=sys.stderr)
        if last.finish_reason == "context":
            print(f"spqt: the context is full: {_MORE}", file=sys.stderr)
        elif last.finish_reason == "length":
            print(f"spqt: {ended('length', conversation.max_new_tokens)}", file=sys.stderr)


def _summary(stats: Stats) -> str:
    slid = f"the window slid {stats.slides} times; " if stats.slides else ""
    skipped = f"{stats.realised_sparsity:.0%} of the weights skipped, " if stats.realised_sparsity else ""
    return (
        f"[{slid}{stats.prompt_tokens - stats.prompt_tokens_reused} new of {stats.prompt_tokens} tokens; "
        f"{stats.decode_tokens_per_second:.1f} tokens/s, {skipped}{megabytes(stats.bytes_per_token)} read per token]"
    )


def _begin_anew(conversation: Conversation, system: str) -> None:
    conversation.system = system or None
    conversation.clear()


def _again(conversation: Conversation, rest: str) -> None:
    message = conversation.take_back()
    if message is None:
        raise GenerationError("there is no message to answer again")
    _answer(conversation, message)


def _save(conversation: Conversation, name: str) -> None:
    path = chat_files.save_conversation(name, conversation.messages)
    print(f"{path}: {_count(conversation)}", file=sys.stderr)


def _load(conversation: Conversation, name: str) -> None:
    messages = chat_files.load_conversation(name)
    conversation.system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    conversation.messages = messages
    print(f"{name}: {_count(conversation)}", file=sys.stderr)


def _count(conversation: Conversation) -> str:
    count = len(conversation.messages)
    return "1 message" if count == 1 else f"{count} messages"


def _set_sparsity(conversation: Conversation, text: str) -> None:
    from spqt_ti import api

    try:
        level = api.check_level(float(text))
    except ValueError:
        raise GenerationError(f"/sparsity takes a share such as 0.4, not {text!r}") from None
    model = conversation.model
    model.apply(model.calibrate().policy(level) if level else None)


def _exit(conversation: Conversation, rest: str) -> None:
    raise SystemExit(0)


_COMMANDS: dict[str, Callable[[Conversation, str], None]] = {
    "system": _begin_anew,
    "clear": lambda conversation, rest: conversation.clear(),
    "again": _again,
    "save": _save,
    "load": _load,
    "sparsity": _set_sparsity,
    "help": lambda conversation, rest: print(_HELP, file=sys.stderr),
    "exit": _exit,
}
