"""`spqt bench decode`: decode speed at several sparsities, as a table."""

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
    decode.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")
    decode.add_argument("--tokens", type=int, default=128, metavar="N", help="tokens per run (default: %(default)s)")
    decode.add_argument("--rounds", type=int, default=5, metavar="N", help="runs per level (default: %(default)s)")
    decode.add_argument("--profile", action="store_true", help="instead: where the time of a token goes, by phase")
    decode.add_argument(
        "--prompt-tokens", type=int, default=0, metavar="N", help="with --profile: tokens before (default: a few)"
    )
    decode.add_argument("--json", action="store_true", help="print JSON instead of a Markdown table")
    decode.set_defaults(run=run_decode)


def run_decode(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    sparsities = _levels(arguments.sparsity)
    if arguments.tokens < 1 or arguments.rounds < 1:
        raise GenerationError("--tokens and --rounds must be 1 or more")
    with held_back():
        from spqt_ti.benchmark.decode import markdown, measure_decode, profile_decode, profile_markdown
    if arguments.profile:
        profiles = profile_decode(
            arguments.model, sparsities, arguments.threads, arguments.tokens, arguments.prompt_tokens
        )
        if arguments.json:
            print_json([dataclasses.asdict(profile) for profile in profiles])
        else:
            print(profile_markdown(profiles))
        return
    rows = measure_decode(arguments.model, sparsities, arguments.threads, arguments.tokens, arguments.rounds)
    if arguments.json:
        print_json([dataclasses.asdict(row) for row in rows])
    else:
        print(markdown(rows))


def _levels(text: str) -> list[float]:
    try:
        levels = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise GenerationError(f"--sparsity takes numbers separated by commas, not {text!r}") from error
    if len(set(levels)) != len(levels):
        raise GenerationError(f"--sparsity names a level twice: {text}")
    return levels
