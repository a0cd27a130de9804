"""`spqt COMMAND ...`: parses the command line, runs the command, turns errors into one line and an exit code.

Exit codes: 0, 1 (an error, which stderr names), 2 (wrong usage), 130 (Ctrl-C), 141 (the reader of stdout went away).
Commands import what they need when they run, so that `spqt --help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from spqt_ti.cli import (
    allocate,
    backends,
    bench,
    calibrate,
    chat,
    compare,
    completion,
    doctor,
    generate,
    info,
    perplexity,
    policies,
    pull,
    quantize,
    recommend,
    serve,
    stored,
    tune,
)
from spqt_ti.cli.output import print_error, print_log
from spqt_ti.cli.signals import terminate_cleanly
from spqt_ti.cli.streams import open_streams
from spqt_ti.errors import SpqtError

_COMMANDS = (
    pull, stored, quantize, info, generate, chat, serve, calibrate, allocate, perplexity, policies, backends, compare,
    bench, tune, recommend, doctor, completion,
)  # fmt: skip
_EXAMPLES = """\
examples:
  spqt generate smollm2-135m "The capital of France is" --sparsity 0.3
  spqt quantize model.gguf my-model
  spqt info my-model
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage."""
        self.exit(2, f"spqt: error: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """`--version` that looks the version up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: Any) -> NoReturn:
        from spqt_ti import __version__

        print(f"spqt {__version__}", flush=True)  # a full disk is noticed here, and not when Python ends
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's) and return its exit code."""
    open_streams()
    # A terminal that cannot show a character gets a replacement, not an exception.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure:
        reconfigure(errors="replace")
    print_log()
    try:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        with terminate_cleanly():
            arguments.run(arguments)
            sys.stdout.flush()
    except BaseException as error:
        return _report(error)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with code 2 and a line that names the command's own help where it is wrong."""
    parser = build_parser()
    if not argv:
        parser.print_help(sys.stderr)
        parser.exit(2)
    arguments, rest = parser.parse_known_args(_model_first(parser, argv))
    _take_prompt(arguments, rest)
    if rest:
        arguments.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _take_prompt(arguments: argparse.Namespace, rest: list[str]) -> None:
    """A PROMPT that stands behind options: argparse has given its place to nothing, where MODEL stands before them."""
    if getattr(arguments, "prompt", "") is None and len(rest) == 1 and (rest == ["-"] or rest[0][:1] != "-"):
        arguments.prompt = rest.pop()


def _model_first(parser: argparse.ArgumentParser, argv: Sequence[str]) -> Sequence[str]:
    """`-m MODEL` and `--model MODEL`, as llama-cli and mlx_lm have them, put where a command takes its MODEL."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and argv and argv[0] in action.choices:
            return [argv[0], *_model_first(action.choices[argv[0]], argv[1:])]
    if not any(action.dest == "model" and not action.option_strings for action in parser._actions):
        return argv
    ends = argv.index("--") if "--" in argv else len(argv)
    for at, word in enumerate(argv[:ends]):
        name, sign, value = word.partition("=")
        if name in ("-m", "--model"):
            if not sign and at + 1 == ends:
                parser.error(f"argument {name}: expected a MODEL")
            after = at + (1 if sign else 2)
            return [value if sign else argv[at + 1], *argv[:at], *argv[after:]]
    return argv


def _report(error: BaseException) -> int:
    """Say in one line what ended the command; return its exit code. What nobody foresaw is raised again."""
    if isinstance(error, KeyboardInterrupt):
        print("spqt: interrupted", file=sys.stderr)
        return 130
    if isinstance(error, BrokenPipeError):
        _silence_stdout()
        return 141
    if isinstance(error, SpqtError):
        print_error(str(error))
    elif isinstance(error, MemoryError):
        print_error("not enough memory")
    elif isinstance(error, OSError):
        print_error(str(error))
        _silence_stdout()
    else:
        raise error
    return 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; a parsed command line has `run`, the function to call with it."""
    parser = _Parser(
        prog="spqt",
        description="Quantised Llama models that skip the weights of inactive inputs while they generate text.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    _name_themselves(commands)
    completion.complete(commands, parser)
    return parser


def _name_themselves(commands: Any) -> None:
    """A parsed command line has `parser`, the one of its command, or of the command's command."""
    for parser in commands.choices.values():
        parser.set_defaults(parser=parser)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                _name_themselves(action)


def _silence_stdout() -> None:
    """Point stdout at nothing: the interpreter flushes it once more on exit, which would fail again."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
