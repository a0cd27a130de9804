"""Options that several commands have, each described once, and the types of their values."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

HIGHEST = 0.99  # level of sparsity

Adder = Any  # a parser, or a group of one


def add_model(parser: Adder, **more: Any) -> None:
    """MODEL, which every command understands alike."""
    text = "quantised directory, Hugging Face directory, .gguf file, hub id or known name (see spqt pull); or -m MODEL"
    parser.add_argument("model", metavar="MODEL", help=text, **more)


def add_threads(parser: Adder) -> None:
    """--threads N."""
    parser.add_argument(
        "-t", "--threads", type=count, metavar="N", help="worker threads of the CPU (default: one per CPU)"
    )  # fmt: skip


def add_backend(parser: Adder) -> None:
    """--backend NAME."""
    parser.add_argument(
        "--backend", help="cpu, vulkan, cuda, metal or auto, which says what it took (default: $SPQT_BACKEND, else cpu)"
    )


def add_rounds(parser: Adder) -> None:
    """--rounds N."""
    parser.add_argument(
        "--rounds", type=count, default=5, metavar="N",
        help="interleaved runs of everything, of which the median counts (default: %(default)s)",
    )  # fmt: skip


def add_levels(parser: Adder, help: str, **more: Any) -> None:
    """--sparsity S,S,..."""
    parser.add_argument("--sparsity", type=levels, metavar="S,S,...", help=help, **more)


def add_policies(parser: Adder, what: str) -> None:
    """--policy FILE, as often as one likes; `what` is done with each."""
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="POLICY",
        help=f"{what} this policy as well (a file, or see spqt policy); may be repeated",
    )


def add_text(parser: Adder, what: str) -> None:
    """--text FILE; `what` it is for."""
    parser.add_argument(
        "--text", required=True, metavar="FILE", help=f"UTF-8 text {what} (bench/accuracy/texts.py makes two)"
    )


def add_plot(parser: Adder, what: str) -> None:
    """--plot FILE.png."""
    parser.add_argument("--plot", metavar="FILE.png", help=f"draw {what} as well (needs matplotlib)")


def add_json(parser: Adder) -> None:
    """--json, of a command that reports one thing."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_formats(parser: Adder) -> None:
    """--json and --csv, of a command that prints rows."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    group.add_argument("--csv", action="store_true", help="print the rows as CSV")


def count(text: str) -> int:
    """A whole number of 1 or more."""
    return _whole(text, 1)


def count_or_none(text: str) -> int:
    """A whole number of 0 or more."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, not {text!r}") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"must be {least} or more, not {value}")
    return value


def level(text: str) -> float:
    """A sparsity between 0 and 0.99."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a share such as 0.4, not {text!r}") from None
    if not 0 <= value <= HIGHEST:
        meant = f"; did you mean {value / 100:g}?" if 1 < value <= 100 * HIGHEST else ""
        raise argparse.ArgumentTypeError(f"a sparsity must be between 0 and {HIGHEST}, not {text}{meant}")
    return value


def levels(text: str) -> list[float]:
    """Different sparsities, `0,0.25,0.5`."""
    return _different(text, level)


def densities(text: str) -> list[float]:
    """Different densities above 0 and up to 1, `0.75,0.5`."""
    return _different(text, _density)


def _density(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a share such as 0.5, not {text!r}") from None
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"a density must be above 0 and at most 1, not {text}")
    return value


def _different(text: str, of: Callable[[str], float]) -> list[float]:
    values = [of(part) for part in text.split(",")]
    if len(set(values)) != len(values):
        raise argparse.ArgumentTypeError(f"names a value twice: {text}")
    return values
