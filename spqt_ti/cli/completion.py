"""`spqt completion SHELL`: a script that completes commands and options, made by `shtab` (extra `completion`)."""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any

from spqt_ti.errors import SpqtError

_SHELLS = ("bash", "zsh", "tcsh")


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "completion",
        help="print a completion script for a shell",
        description="Print a script that completes commands, options and files. For bash: spqt completion bash > "
        "~/.local/share/bash-completion/completions/spqt; for zsh: save it as _spqt in a folder of $fpath.",
    )
    parser.add_argument("shell", choices=_SHELLS, help="shell that is to complete")
    parser.set_defaults(run=run)


def complete(commands: Any, whole: argparse.ArgumentParser) -> None:
    """Have the command complete for `whole`, the parser that it is part of."""
    commands.choices["completion"].set_defaults(whole=whole)


def run(arguments: argparse.Namespace) -> None:
    """Print the script for `whole`, the parser of all commands. SpqtError without shtab."""
    if importlib.util.find_spec("shtab") is None:
        raise SpqtError("shtab is not installed: pip install 'spqt-ti[completion]'")
    import shtab

    print(shtab.complete(arguments.whole, arguments.shell), end="")
