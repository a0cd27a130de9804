"""`spqt generate`: text from a prompt, as it comes."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from spqt_ti.cli.output import megabytes, print_json
from spqt_ti.cli.signals import held_back
from spqt_ti.errors import GenerationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spqt_ti.api import Generation, Piece
    from spqt_ti.generation.loop import Stats


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "generate",
        help="generate text from a prompt",
        description="Generate text. It goes to stdout as it comes; a last line on stderr gives speed, skipped weights "
        "and bytes read. A model that is not quantised yet is quantised once, into the cache folder.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="quantised directory, Hugging Face directory, .gguf file, hub id or known name"
    )
    parser.add_argument("prompt", metavar="PROMPT", help="text to go on from; with --chat, a question")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="at most (default: %(default)s)")
    _add_sparsity(parser)
    _add_sampling(parser)
    machine = parser.add_argument_group("machine")
    machine.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")
    machine.add_argument("--context", type=int, metavar="N", help="tokens that prompt and answer may take together")
    machine.add_argument(
        "--backend", help="cpu, vulkan, cuda, metal or auto, which says what it took (default: $SPQT_BACKEND, else cpu)"
    )
    machine.add_argument("--exact", action="store_true", help="f32 where the CPU would otherwise multiply in 16 bits")
    parser.add_argument("--json", action="store_true", help="print JSON at the end instead of text as it comes")
    parser.set_defaults(run=run)


def _add_sparsity(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sparsity").add_mutually_exclusive_group()
    group.add_argument(
        "--sparsity",
        type=float,
        default=0.0,
        metavar="S",
        help="share of inputs to skip, 0 to 0.99; the first time, a short calibration runs (default: %(default)s)",
    )
    group.add_argument("--policy", metavar="FILE", help="thresholds from a policy file instead")
    parser.add_argument(
        "--calibration-text", metavar="FILE", help="text to calibrate on instead of the sample that comes along"
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (default: %(default)s)"
    )
    group.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    group.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens that reach this share")
    group.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the random draws (default: %(default)s)")


def _seed(text: str) -> int:
    seed = int(text)
    if seed < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return seed


def run(arguments: argparse.Namespace) -> None:
    """Load the model, generate, report."""
    try:
        arguments.prompt.encode()
    except UnicodeEncodeError as error:
        raise GenerationError("the prompt is not valid UTF-8") from error
    with held_back():
        from spqt_ti import load
    model = load(
        arguments.model,
        backend=arguments.backend,
        sparsity=arguments.sparsity if arguments.policy is None else arguments.policy,
        threads=arguments.threads,
        context=arguments.context,
        calibration_text=arguments.calibration_text,
        exact=arguments.exact,
    )
    options = {
        name: getattr(arguments, name) for name in ("max_new_tokens", "temperature", "seed", "top_k", "top_p", "chat")
    }
    if arguments.json:
        _print_generation(model.generate(arguments.prompt, **options))
        return
    stats = _print_stream(model.stream(arguments.prompt, **options))
    if stats is not None:
        print(summary(stats), file=sys.stderr)


def _print_stream(pieces: Iterable[Piece]) -> Stats | None:
    """Print pieces as they come, then a line end, even if Ctrl-C cuts them off; return the last one's stats."""
    stats, begun = None, False
    try:
        for piece in pieces:
            begun = True
            print(piece.text, end="", flush=True)
            stats = piece.stats or stats
    finally:
        if begun:
            print(flush=True)
    return stats


def summary(stats: Stats) -> str:
    """The last line: speeds, what was skipped, bytes read."""
    skipped = f"{stats.realised_sparsity:.0%} of the weights skipped, " if stats.realised_sparsity else ""
    return (
        f"prompt {stats.prompt_tokens} tokens, {stats.prompt_tokens_per_second:.1f}/s; "
        f"decoded {stats.decode_tokens}, {stats.decode_tokens_per_second:.1f}/s; "
        f"{skipped}{megabytes(stats.bytes_per_token)} read per token"
    )


def _print_generation(generation: Generation) -> None:
    stats = generation.stats
    print_json(
        {
            "text": generation.text,
            "token_ids": list(generation.token_ids),
            "finish_reason": generation.finish_reason,
            **dataclasses.asdict(stats),
            "prompt_tokens_per_second": stats.prompt_tokens_per_second,
            "decode_tokens_per_second": stats.decode_tokens_per_second,
        }
    )
