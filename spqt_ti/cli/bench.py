"""`spqt bench decode|gemv`: speed, as tables."""

from __future__ import annotations

import argparse
from typing import Any

from spqt_ti.cli import options
from spqt_ti.cli.output import print_rows
from spqt_ti.cli.signals import held_back
from spqt_ti.errors import GenerationError
from spqt_ti.formats.names import NAMES

LEVELS = [0.0, 0.25, 0.4, 0.5, 0.65]  # of the README's table; spelled out so that --help needs no NumPy


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser("bench", help="measure speed", description="Measure speed.")
    kinds = parser.add_subparsers(title="what", metavar="WHAT", required=True)
    _add_decode(kinds)
    _add_gemv(kinds)


def _add_decode(kinds: Any) -> None:
    decode = kinds.add_parser(
        "decode",
        help="tokens per second at several sparsities",
        description="Decode greedily at several sparsities in interleaved rounds; medians, compared with the speed at "
        "which this machine reads memory, measured in the same run.",
    )
    options.add_model(decode)
    shown = ",".join(f"{level:g}" for level in LEVELS)
    options.add_levels(decode, f"levels, the first is the baseline (default: {shown})", default=LEVELS)
    options.add_policies(decode, "measure")
    options.add_threads(decode)
    decode.add_argument(
        "--tokens", type=options.count, default=128, metavar="N", help="tokens per run (default: %(default)s)"
    )
    options.add_rounds(decode)
    decode.add_argument("--profile", action="store_true", help="instead: where the time of a token goes, by phase")
    decode.add_argument(
        "--prompt-tokens", type=options.count, default=0, metavar="N", help="with --profile: tokens before"
    )
    options.add_plot(decode, "speed over sparsity")
    options.add_formats(decode)
    decode.set_defaults(run=run_decode)


def _add_gemv(kinds: Any) -> None:
    gemv = kinds.add_parser(
        "gemv",
        help="the five GEMV kernels on shapes of your choice",
        description="Time the GEMVs row (row layout, dense), b1 (row layout, naively sparse), zigzag (dense), b2 "
        "(zigzag, skipping on the fly) and full (index collected, active columns split evenly) in interleaved rounds, "
        "on weights that come from memory. Times are of one product.",
    )
    gemv.add_argument(
        "--shapes", default="4096x4096,14336x4096,4096x14336", metavar="SHAPES",
        help="list of ROWSxCOLS, paper, and models such as llama-3-8b (default: %(default)s)",
    )  # fmt: skip
    gemv.add_argument(
        "--densities", type=options.densities, default=[0.75, 0.6, 0.5, 0.35], metavar="D,D,...",
        help="shares of active inputs (default: 0.75,0.6,0.5,0.35)",
    )  # fmt: skip
    gemv.add_argument(
        "--kernels", default="b1,b2,full", metavar="K,K,...",
        help="sparse kernels; row and zigzag, which they are compared with, always run (default: %(default)s)",
    )  # fmt: skip
    gemv.add_argument(
        "--schemes", default="q4_k", metavar="S,S,...",
        help=f"of the weights: some of {', '.join(NAMES)} (default: %(default)s); b1 and b2 are q4_k's alone",
    )  # fmt: skip
    gemv.add_argument("--warm", action="store_true", help="weights stay in the cache instead")
    options.add_threads(gemv)
    options.add_rounds(gemv)
    options.add_plot(gemv, "speed-up over density")
    options.add_formats(gemv)
    gemv.set_defaults(run=run_gemv)


def run_decode(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    if arguments.profile and (arguments.policy or arguments.plot):
        raise GenerationError("--profile takes levels, no --policy and no --plot")
    with held_back():
        from spqt_ti.benchmark.decode import describe, measure_decode, profile_decode, profile_table, table
        from spqt_ti.benchmark.plot import check_matplotlib, plot_decode
        from spqt_ti.benchmark.provenance import provenance, warn_if_busy
        from spqt_ti.sparsity.shared_policies import find_policy
    policies = [find_policy(path) for path in arguments.policy]
    if arguments.plot:
        check_matplotlib()
    warn_if_busy()
    if arguments.profile:
        profiles = profile_decode(
            arguments.model, arguments.sparsity, arguments.threads, arguments.tokens, arguments.prompt_tokens
        )
        footer = f"{arguments.model}: means of {arguments.tokens} tokens after {profiles[0].position}"
        print_rows(arguments, profiles, profile_table(profiles), footer, provenance(profiles[0].threads))
        return
    rows = measure_decode(
        arguments.model, arguments.sparsity, arguments.threads, arguments.tokens, arguments.rounds, policies
    )
    print_rows(arguments, rows, table(rows), describe(rows), provenance(rows[0].threads))
    if arguments.plot:
        plot_decode(rows, arguments.plot)


def run_gemv(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    with held_back():
        from spqt_ti.backend import start
        from spqt_ti.benchmark.gemv import KERNELS, measure_gemv, table
        from spqt_ti.benchmark.plot import check_matplotlib, plot_gemv
        from spqt_ti.benchmark.provenance import provenance, warn_if_busy
        from spqt_ti.benchmark.shapes import parse_shapes
    kernels = arguments.kernels.split(",")
    if not set(kernels) <= set(KERNELS):
        raise GenerationError(f"--kernels takes some of {', '.join(KERNELS)}, not {arguments.kernels!r}")
    shapes = parse_shapes(arguments.shapes)
    names = arguments.schemes.split(",")
    if not set(names) <= set(NAMES):
        raise GenerationError(f"--schemes takes some of {', '.join(NAMES)}, not {arguments.schemes!r}")
    if arguments.plot:
        check_matplotlib()
    warn_if_busy()
    threads = arguments.threads or start("cpu", arguments.threads).threads
    rows = measure_gemv(shapes, arguments.densities, threads, arguments.rounds, kernels, arguments.warm, names)
    footer = (
        f"weights {'in cache' if arguments.warm else 'from memory'}; us per product, collection included, medians of "
        f"{arguments.rounds} interleaved rounds ± (p80 - p20) / 2"
    )
    print_rows(arguments, rows, table(rows), footer, provenance(threads))
    if arguments.plot:
        plot_gemv(rows, arguments.plot)
