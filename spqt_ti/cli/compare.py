"""`spqt compare`: the same work on several backends, as a table."""

from __future__ import annotations

import argparse
from typing import Any

from spqt_ti.cli import options
from spqt_ti.cli.output import print_rows
from spqt_ti.cli.signals import held_back


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "compare",
        help="run the same work on several backends",
        description="Run GEMV, collector, logits and greedy tokens on several backends, each in a process of its own, "
        "and say how far their results agree with those of the first, and how long they took.",
    )
    options.add_model(parser)
    parser.add_argument(
        "--backends", default="cpu,vulkan", metavar="B,B,...", help="the first is the standard (default: %(default)s)"
    )
    parser.add_argument(
        "--tokens", type=options.count, default=32, metavar="N", help="greedy tokens (default: %(default)s)"
    )
    options.add_formats(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Compare and print."""
    with held_back():
        from spqt_ti.benchmark.compare import compare, devices, table
        from spqt_ti.benchmark.provenance import provenance
    rows = compare(arguments.model, arguments.backends.split(","), arguments.tokens)
    print_rows(arguments, rows, table(rows), *devices(rows), provenance(None))
