"""What the commands that generate text share: options of sparsity, sampling and machine, and the model they ask for."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from spqt_ti.cli import options
from spqt_ti.errors import GenerationError
from spqt_ti.paths import expanded
from spqt_ti.texts import read_text

if TYPE_CHECKING:
    from spqt_ti.api import Model
    from spqt_ti.container import Container
    from spqt_ti.generation.constraint import Constraint
    from spqt_ti.generation.sampling import Sampling


def add_sparsity(parser: argparse.ArgumentParser) -> None:
    """--sparsity, --policy and --calibration-text."""
    group = parser.add_argument_group("sparsity").add_mutually_exclusive_group()
    group.add_argument(
        "--sparsity",
        type=float,
        default=0.0,
        metavar="S",
        help="share of inputs to skip, 0 to 0.99; the first time, a short calibration runs (default: %(default)s)",
    )
    group.add_argument("--policy", metavar="POLICY", help="a policy instead: a file, or see spqt policy")
    parser.add_argument(
        "--calibration-text", metavar="FILE", help="text to calibrate on instead of the sample that comes along"
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The fields of Sampling, and --stop."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (default: %(default)s)"
    )
    group.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    group.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens that reach this share")
    group.add_argument("--min-p", type=float, metavar="P", help="draw from tokens with this share of the best one's")
    group.add_argument(
        "--typical-p", type=float, metavar="P", help="draw from the most typical tokens up to this share"
    )
    for name, default, what in (
        ("repetition", 1.0, "divides logits of tokens that were there (1 changes nothing)"),
        ("frequency", 0.0, "taken off for each time that the answer has the token"),
        ("presence", 0.0, "taken off where the answer has the token"),
    ):
        also = ["--repeat-penalty"] if name == "repetition" else []  # llama.cpp's
        group.add_argument(
            f"--{name}-penalty", *also, type=float, default=default, metavar="X", help=f"{what} (default: %(default)s)"
        )
    _add_dry(group)
    group.add_argument(
        "-s", "--seed", type=_seed, default=0, metavar="N", help="of the random draws (default: %(default)s)"
    )
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end the answer before this text; may be repeated"
    )


def _add_dry(group: argparse._ArgumentGroup) -> None:
    """The penalty of repetitions, as llama.cpp calls it."""
    group.add_argument(
        "--dry-multiplier", type=float, default=0.0, metavar="X",
        help="DRY, against repetitions of several tokens: 0.8 is usual, 0 is off (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--dry-base", type=float, default=1.75, metavar="X",
        help="by which the penalty grows with each token of a repetition (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--dry-allowed-length", type=int, default=2, metavar="N",
        help="from this length on, a repetition's next token is penalised (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--dry-penalty-last-n", type=int, default=-1, metavar="N",
        help="tokens to look for repetitions in, -1: as many as the context has (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--dry-sequence-breaker", dest="dry_sequence_breakers", action="append", metavar="TEXT",
        help=r"repetitions do not reach back over it; may be repeated, `none` for no such text "
        r'(default: \n : " *)',
    )  # fmt: skip


def add_form(parser: argparse.ArgumentParser) -> None:
    """--json-schema, --grammar and --regex."""
    group = parser.add_argument_group("form of the answer (extra `constrained`)").add_mutually_exclusive_group()
    group.add_argument(
        "-j", "--json-schema", metavar="SCHEMA", help="JSON of this schema: a file, or the schema itself"
    )
    group.add_argument("--grammar", metavar="FILE", help="a grammar: llguidance's Lark, or llama.cpp's in a .gbnf file")
    group.add_argument("--regex", metavar="TEXT", help="a regular expression that the whole answer matches")


def constraint_of(arguments: argparse.Namespace) -> Constraint | None:
    """What `add_form` was given. Raises GenerationError for a form that cannot be followed."""
    from spqt_ti.generation.constraint import Constraint

    if arguments.json_schema is not None:
        text = arguments.json_schema
        return Constraint.json_schema(text if text.lstrip()[:1] == "{" else read_text(text, GenerationError))
    if arguments.grammar is not None:
        kind = "gbnf" if arguments.grammar.endswith(".gbnf") else "lark"
        return Constraint(kind, read_text(arguments.grammar, GenerationError))
    return None if arguments.regex is None else Constraint("regex", arguments.regex)


def add_prefix_cache(parser: argparse.ArgumentParser) -> None:
    """--prefix-cache."""
    parser.add_argument(
        "--prefix-cache",
        metavar="FILE",
        help="keep what was computed of the prompt in FILE, and begin with what is there; it changes no answer",
    )


@contextlib.contextmanager
def prefix_cache(model: Model, file: str | None) -> Iterator[None]:
    """Begin with what the file has; write it, where more was computed. GenerationError for a file that does not fit."""
    if file is None:
        yield
        return
    path = expanded(file)
    if path.parent != path and not path.parent.is_dir():
        raise GenerationError(f"{path}: the folder for the prefix is not there; make it first")
    before = model.load_prefix(path) if path.exists() else 0
    held = model.llama.prefix_tokens()
    try:
        yield
    finally:
        now = model.llama.prefix_tokens()
        if len(now) and (len(now) > before or now != held[: len(now)]):
            model.save_prefix(path)


def add_machine(parser: argparse.ArgumentParser) -> None:
    """--threads, --context, --backend and --exact."""
    machine = parser.add_argument_group("machine")
    options.add_threads(machine)
    machine.add_argument(
        "-c", "--context", type=int, metavar="N", help="tokens that prompt and answer may take together"
    )
    machine.add_argument(
        "--on-overflow", choices=("stop", "slide"), default="stop",
        help="a full context ends the text, or goes on as a window that keeps the start (default: %(default)s)",
    )  # fmt: skip
    options.add_backend(machine)
    machine.add_argument("--exact", action="store_true", help="f32 where the CPU would otherwise multiply in 16 bits")


def sampling_of(arguments: argparse.Namespace) -> Sampling:
    """What `add_sampling` was given. Raises GenerationError for values out of range."""
    from spqt_ti.generation.sampling import Sampling, field_names

    given = dict(vars(arguments))
    breakers = given.pop("dry_sequence_breakers", None)
    if breakers is not None:
        given["dry_sequence_breakers"] = () if breakers == ["none"] else tuple(map(_unescaped, breakers))
    return Sampling(**{name: given[name] for name in field_names() if name in given})


def load(arguments: argparse.Namespace, container: Container) -> Model:
    """The model of a container as the options want it."""
    from spqt_ti import api

    return api.load(
        container,
        backend=arguments.backend,
        sparsity=arguments.sparsity if arguments.policy is None else arguments.policy,
        threads=arguments.threads,
        context=arguments.context,
        calibration_text=arguments.calibration_text,
        exact=arguments.exact,
    )


def _unescaped(text: str) -> str:
    r"""A text in which \n, \t, \", \' and \\ are one character, as llama.cpp reads breakers."""
    return re.sub(r"\\([nt\"'\\])", lambda found: {"n": "\n", "t": "\t"}.get(found[1], found[1]), text)


def _seed(text: str) -> int:
    seed = int(text)
    if seed < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return seed
