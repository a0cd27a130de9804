"""`spqt tune`: measure this device, so that every matrix runs by the faster kernel."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from spqt_ti.cli.output import print_json
from spqt_ti.cli.signals import held_back
from spqt_ti.cli.workers import workers_of
from spqt_ti.errors import TuningError

if TYPE_CHECKING:
    from spqt_ti.model.tuning import TunedShape

_TIMES = ["dense us", "sparse us", "skipping pays up to"]


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "tune",
        help="measure which kernel is the fastest for each matrix",
        description="Measure the GEMVs of a model's matrices on a device: how they are divided best (on the CPU: how "
        "many bands of 256 rows should stand side by side; on a GPU: how many threadgroups share a band, and how many "
        "simdgroups are in each), and up to which density of active inputs skipping pays. The result is kept in the "
        "cache folder and used on this device from then on by every model with matrices of these shapes.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="as for generate; its matrices are measured")
    parser.add_argument("--shapes", metavar="SHAPES", help="instead: list of ROWSxCOLS and names, as for bench gemv")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads of the CPU (default: one per CPU)")
    parser.add_argument(
        "--backend", help="cpu, vulkan, cuda, metal or auto: what to measure (default: $SPQT_BACKEND, else cpu)"
    )
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
        from spqt_ti.backend import look_up, start
        from spqt_ti.benchmark.shapes import parse_shapes
        from spqt_ti.benchmark.tune import keep, tune_shapes
        from spqt_ti.model.sites import matrix_shapes
    workers = workers_of(look_up(arguments.backend), arguments.threads)
    if arguments.shapes:
        shapes = parse_shapes(arguments.shapes)
    else:
        config = open_quantized(arguments.model, arguments.backend).config
        shapes = list(dict.fromkeys((shape.rows, shape.cols) for shape in matrix_shapes(config).values()))
    runtime = start(arguments.backend, arguments.threads, profiler=True)
    if not arguments.json:
        titles = ["rows x cols", *(["threads", "bands side by side"] if workers else ["split"]), *_TIMES]
        print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)
    measured = []
    for tuned in tune_shapes(shapes, runtime, arguments.threads, arguments.rounds):
        measured.append(tuned)
        if not arguments.json:
            print(f"| {' | '.join(_cells(tuned))} |", flush=True)
    path = keep(measured, runtime.name)
    if arguments.json:
        print_json([{**dataclasses.asdict(t), "max_density": t.max_density} for t in measured])
    else:
        print(f"\nkept in {path}")


def _cells(tuned: TunedShape) -> list[str]:
    division = [str(tuned.threads), str(tuned.panel_bands)] if tuned.split is None else [str(tuned.split)]
    times = [f"{tuned.dense:.1f}", f"{tuned.alpha:.1f} + {tuned.beta:.1f} density", f"{tuned.max_density:.0%}"]
    return [f"{tuned.rows}x{tuned.cols}", *division, *times]
