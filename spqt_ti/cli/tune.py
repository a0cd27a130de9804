"""`spqt tune`: measure this device, so that every matrix runs by the faster kernel."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from spqt_ti.cli.output import print_json
from spqt_ti.cli.signals import held_back
from spqt_ti.errors import TuningError


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "tune",
        help="measure which kernel is the fastest for each matrix",
        description="Measure the GEMVs of a model's matrices on this device: how many bands of 256 rows should stand "
        "side by side, and up to which density of active inputs skipping pays. The result is kept in the cache folder "
        "and used from then on by every model with matrices of these shapes.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="as for generate; its matrices are measured")
    parser.add_argument("--shapes", metavar="SHAPES", help="instead: list of ROWSxCOLS and names, as for bench gemv")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a Markdown table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, keep, report."""
    if (arguments.model is None) == (arguments.shapes is None):
        raise TuningError("name either a model or --shapes")
    if arguments.rounds < 1:
        raise TuningError("--rounds must be 1 or more")
    with held_back():
        from spqt_ti.api import open_quantized
        from spqt_ti.backend import start
        from spqt_ti.benchmark.shapes import parse_shapes
        from spqt_ti.benchmark.tune import keep, tune_shapes
        from spqt_ti.model.sites import matrix_shapes
        from spqt_ti.tuning import tuning_path
    if arguments.shapes:
        shapes = parse_shapes(arguments.shapes)
    else:
        config = open_quantized(arguments.model).config
        shapes = list(dict.fromkeys((shape.rows, shape.cols) for shape in matrix_shapes(config).values()))
    threads = arguments.threads or start("cpu", arguments.threads).threads
    if not arguments.json:
        print("| rows x cols | threads | bands side by side | dense us | sparse us | skipping pays up to |")
        print("|---|---|---|---|---|---|", flush=True)
    measured = []
    for tuned in tune_shapes(shapes, threads, arguments.rounds):
        measured.append(tuned)
        if not arguments.json:
            print(
                f"| {tuned.rows}x{tuned.cols} | {tuned.threads} | {tuned.panel_bands} | {tuned.dense:.1f} "
                f"| {tuned.alpha:.1f} + {tuned.beta:.1f} density | {tuned.max_density:.0%} |",
                flush=True,
            )
    keep(measured)
    if arguments.json:
        print_json([{**dataclasses.asdict(t), "max_density": t.max_density} for t in measured])
    else:
        print(f"\nkept in {tuning_path()}")
