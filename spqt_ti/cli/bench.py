"""`spqt bench decode|gemv`: speed, as tables."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from spqt_ti.cli.output import print_json
from spqt_ti.cli.signals import held_back
from spqt_ti.errors import GenerationError


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser("bench", help="measure speed", description="Measure speed.")
    kinds = parser.add_subparsers(title="what", metavar="WHAT", required=True)
    decode = kinds.add_parser(
        "decode",
        help="tokens per second at several sparsities",
        description="Decode greedily at several sparsities in interleaved rounds; medians, compared with the speed at "
        "which this machine reads memory, measured in the same run.",
    )
    decode.add_argument("model", metavar="MODEL", help="as for generate")
    decode.add_argument(
        "--sparsity",
        default="0,0.25,0.4,0.5",
        metavar="S,S,...",
        help="levels, the first is the baseline (default: %(default)s)",
    )
    decode.add_argument(
        "--policy", action="append", default=[], metavar="FILE", help="measure this policy as well; may be repeated"
    )
    decode.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")
    decode.add_argument("--tokens", type=int, default=128, metavar="N", help="tokens per run (default: %(default)s)")
    decode.add_argument("--rounds", type=int, default=5, metavar="N", help="runs per level (default: %(default)s)")
    decode.add_argument("--profile", action="store_true", help="instead: where the time of a token goes, by phase")
    decode.add_argument(
        "--prompt-tokens", type=int, default=0, metavar="N", help="with --profile: tokens before (default: a few)"
    )
    decode.add_argument("--plot", metavar="FILE.png", help="draw speed over sparsity as well (needs matplotlib)")
    decode.add_argument("--json", action="store_true", help="print JSON instead of a Markdown table")
    decode.set_defaults(run=run_decode)
    _add_gemv(kinds)


def _add_gemv(kinds: Any) -> None:
    gemv = kinds.add_parser(
        "gemv",
        help="the five GEMV kernels on shapes of your choice",
        description="Time the GEMVs row (row layout, dense), b1 (row layout, naively sparse), zigzag (dense), b2 "
        "(zigzag, skipping on the fly) and full (index collected, active columns split evenly) in interleaved rounds, "
        "on weights that come from memory.",
    )
    gemv.add_argument(
        "--shapes", default="4096x4096,14336x4096,4096x14336", metavar="SHAPES",
        help="list of ROWSxCOLS, paper, and models such as llama-3-8b (default: %(default)s)",
    )  # fmt: skip
    gemv.add_argument("--densities", default="0.75,0.6,0.5,0.35", metavar="D,D,...", help="default: %(default)s")
    gemv.add_argument("--kernels", default="row,b1,zigzag,b2,full", metavar="K,K,...", help="default: %(default)s")
    gemv.add_argument("--warm", action="store_true", help="weights stay in the cache instead")
    gemv.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")
    gemv.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    gemv.add_argument("--json", action="store_true", help="print JSON instead of a Markdown table")
    gemv.add_argument("--plot", metavar="FILE.png", help="draw speed-up over density as well (needs matplotlib)")
    gemv.set_defaults(run=run_gemv)


def run_decode(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    sparsities = _levels(arguments.sparsity)
    if arguments.tokens < 1 or arguments.rounds < 1:
        raise GenerationError("--tokens and --rounds must be 1 or more")
    if arguments.profile and arguments.policy:
        raise GenerationError("--profile takes levels, no --policy")
    with held_back():
        from spqt_ti.benchmark.decode import markdown, measure_decode, profile_decode, profile_markdown
        from spqt_ti.benchmark.plot import check_matplotlib, plot_decode
        from spqt_ti.sparsity.policy import SparsityPolicy
    policies = [SparsityPolicy.load(path) for path in arguments.policy]
    if arguments.plot:
        check_matplotlib()
    if arguments.profile:
        profiles = profile_decode(
            arguments.model, sparsities, arguments.threads, arguments.tokens, arguments.prompt_tokens
        )
        if arguments.json:
            print_json([dataclasses.asdict(profile) for profile in profiles])
        else:
            print(profile_markdown(profiles))
        return
    rows = measure_decode(arguments.model, sparsities, arguments.threads, arguments.tokens, arguments.rounds, policies)
    if arguments.json:
        print_json([dataclasses.asdict(row) for row in rows])
    else:
        print(markdown(rows))
    if arguments.plot:
        plot_decode(rows, arguments.plot)


def run_gemv(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    densities = _numbers("--densities", arguments.densities)
    if not all(0 < density <= 1 for density in densities) or arguments.rounds < 1:
        raise GenerationError("--densities must be above 0 and at most 1, --rounds 1 or more")
    with held_back():
        from spqt_ti.backend import start
        from spqt_ti.benchmark.gemv import KERNELS, markdown, measure_gemv
        from spqt_ti.benchmark.plot import check_matplotlib, plot_gemv
        from spqt_ti.benchmark.shapes import parse_shapes
    kernels = arguments.kernels.split(",")
    if not set(kernels) <= set(KERNELS):
        raise GenerationError(f"--kernels takes some of {', '.join(KERNELS)}, not {arguments.kernels!r}")
    shapes = parse_shapes(arguments.shapes)
    if arguments.plot:
        check_matplotlib()
    threads = arguments.threads or start("cpu", arguments.threads).threads
    rows = measure_gemv(shapes, densities, threads, arguments.rounds, kernels, arguments.warm)
    if arguments.json:
        print_json([dataclasses.asdict(row) for row in rows])
    else:
        print(markdown(rows))
    if arguments.plot:
        plot_gemv(rows, arguments.plot)


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise GenerationError(f"{option} takes numbers separated by commas, not {text!r}") from error


def _levels(text: str) -> list[float]:
    levels = _numbers("--sparsity", text)
    if len(set(levels)) != len(levels):
        raise GenerationError(f"--sparsity names a level twice: {text}")
    return levels
