"""`spqt quantize`: a source model into a quantised directory."""

from __future__ import annotations

import argparse
import time
from typing import Any

from spqt_ti.cli import options
from spqt_ti.cli.info import describe_container
from spqt_ti.cli.output import megabytes, print_json
from spqt_ti.cli.signals import held_back

LAYOUTS = ("zigzag", "row")  # spelled out here too, so that --help needs no NumPy
SCHEMES = ("q4_k",)


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "quantize",
        help="quantise a model into a new directory",
        description="Quantise a model: 4.5 bits per weight, the embedding and the head 8.5. The directory appears "
        "when it is complete, or not at all; the source is only read.",
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="Hugging Face directory, .gguf file, hub id or known name (see spqt pull)"
    )
    parser.add_argument("destination", metavar="DESTINATION", help="directory to make")
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="zigzag",
        help="order of the weights: zigzag skips inactive inputs, row is ggml's (default: %(default)s)",
    )
    parser.add_argument(
        "--scheme", choices=SCHEMES, default="q4_k", help="format of the weights (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="replace the quantised model at DESTINATION")
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Quantise and report size and time."""
    with held_back():
        from spqt_ti.convert.quantize import quantize
    start = time.perf_counter()
    container = quantize(
        arguments.source, arguments.destination, arguments.layout, arguments.scheme, overwrite=arguments.force
    )
    seconds = time.perf_counter() - start
    report = describe_container(container)
    if arguments.json:
        print_json({**report, "seconds": seconds})
    else:
        print(
            f"{container.path}: {report['parameters'] / 1e6:.1f} M parameters in {megabytes(report['bytes'])} "
            f"({container.scheme}, {container.layout}), {seconds:.1f} s"
        )
