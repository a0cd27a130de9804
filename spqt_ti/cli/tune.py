"""`spqt tune`: measure this device, so that every matrix runs by the faster kernel."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spqt_ti.cli import options
from spqt_ti.cli.output import print_rows
from spqt_ti.cli.signals import held_back
from spqt_ti.cli.workers import workers_of
from spqt_ti.errors import TuningError
from spqt_ti.tables import Table

if TYPE_CHECKING:
    from spqt_ti.model.tuning import TunedShape


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
    options.add_model(parser, nargs="?")
    parser.add_argument("--shapes", metavar="SHAPES", help="instead: list of ROWSxCOLS and names, as for bench gemv")
    parser.add_argument("--reset", action="store_true", help="instead: forget what was measured on this device")
    parser.add_argument("--dry-run", action="store_true", help="measure and print, and keep nothing")
    options.add_threads(parser)
    options.add_backend(parser)
    options.add_rounds(parser)
    options.add_formats(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, keep, report; or forget."""
    if [arguments.model is not None, arguments.shapes is not None, arguments.reset].count(True) != 1:
        raise TuningError("name either a model, or --shapes, or --reset")
    with held_back():
        from spqt_ti.api import open_quantized
        from spqt_ti.backend import look_up, start
        from spqt_ti.benchmark.provenance import provenance, warn_if_busy
        from spqt_ti.benchmark.shapes import parse_shapes
        from spqt_ti.benchmark.tune import forget, keep, tune_shapes
        from spqt_ti.model.engines import engine_for
        from spqt_ti.model.sites import matrix_shapes
    device = look_up(arguments.backend)
    if arguments.reset:
        print(forget(device.name))
        return
    workers = workers_of(device, arguments.threads)
    if arguments.shapes:
        shapes = parse_shapes(arguments.shapes)
    else:
        config = open_quantized(arguments.model, arguments.backend).config
        shapes = list(dict.fromkeys((shape.rows, shape.cols) for shape in matrix_shapes(config).values()))
    warn_if_busy()
    runtime = start(arguments.backend, arguments.threads)
    measured = list(tune_shapes(shapes, runtime, arguments.threads, arguments.rounds))
    title = engine_for(runtime.capabilities).division_title
    kept = "kept nowhere (--dry-run)" if arguments.dry_run else f"kept in {keep(measured, runtime.name)}"
    rows = [{**dataclasses.asdict(tuned), "max_density": tuned.max_density} for tuned in measured]
    print_rows(arguments, rows, _table(measured, title), kept, provenance(workers, device.device))


def _table(measured: Sequence[TunedShape], division_title: str) -> Table:
    titles = ["rows x cols", division_title, "dense us", "sparse us, d of inputs active"]
    rows = []
    for tuned in measured:
        sparse = f"{tuned.alpha:.1f} + {tuned.beta:.1f} d"
        rows.append(
            [f"{tuned.rows}x{tuned.cols}", tuned.division, f"{tuned.dense:.1f}", sparse, f"{tuned.max_density:.0%}"]
        )
    return Table([*titles, "skipping pays up to"], rows)
