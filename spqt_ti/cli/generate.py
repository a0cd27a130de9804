"""`spqt generate`: text from a prompt, as it comes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

from spqt_ti.cli import generating, options
from spqt_ti.cli.output import for_terminal, megabytes, print_json
from spqt_ti.cli.signals import held_back
from spqt_ti.errors import GenerationError
from spqt_ti.texts import read_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spqt_ti.api import BeamGeneration, Generation, Model, Piece, Request
    from spqt_ti.generation.loop import Stats
    from spqt_ti.generation.sampling import Sampling


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "generate",
        help="generate text from a prompt",
        description="Generate text. It goes to stdout as it comes; stderr then has speed, skipped weights and bytes "
        "read, and why a text was cut off. A model that is not quantised yet is quantised once, into the cache folder.",
    )
    options.add_model(parser)
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", help="a message, or with --raw text to go on from; - reads it from stdin"
    )
    parser.add_argument("-p", "--prompt", dest="also_prompt", metavar="PROMPT", help="the same, as llama-cli has it")
    parser.add_argument("-f", "--file", metavar="FILE", help="read the prompt from a UTF-8 text file")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--chat", action="store_true", help="use the model's chat template (default where it has one)")
    form.add_argument("--raw", action="store_true", help="no chat template: go on from the prompt as it is")
    parser.add_argument(
        "-n", "--max-new-tokens", type=int, default=64, metavar="N", help="at most (default: %(default)s)"
    )
    generating.add_sparsity(parser)
    generating.add_sampling(parser)
    generating.add_form(parser)
    group = parser.add_argument_group("beam search")
    group.add_argument("--beams", type=options.count, metavar="K", help="search with K beginnings at a time")
    group.add_argument("--best", type=options.count, default=1, metavar="N", help="print the N best (default: 1)")
    group.add_argument(
        "--length-penalty", type=float, default=1.0, metavar="X",
        help="power of the length that divides log-probabilities before they are compared (default: %(default)s)",
    )  # fmt: skip
    generating.add_machine(parser)
    generating.add_prefix_cache(parser)
    parser.add_argument("--json", action="store_true", help="print JSON at the end instead of text as it comes")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Load the model, generate, report."""
    prompt = _prompt(arguments)
    with held_back():
        from spqt_ti import api
    sampling = generating.sampling_of(arguments)
    constraint = generating.constraint_of(arguments)
    _check_beams(arguments, sampling)
    request = api.Request(
        prompt, arguments.max_new_tokens, sampling, arguments.chat, arguments.stop, constraint, arguments.on_overflow
    )
    if arguments.policy is None:
        api.check_level(arguments.sparsity)
    container = api.open_quantized(arguments.model, arguments.backend)
    if container.chat_template is not None and not arguments.raw:
        request = dataclasses.replace(request, chat=True)
    api.check_prompt(container, request, arguments.context)
    model = generating.load(arguments, container)
    asked: dict[str, Any] = {
        "max_new_tokens": request.max_new_tokens, "sampling": sampling, "chat": request.chat, "stop": request.stop,
        "constraint": constraint, "on_overflow": request.on_overflow,
    }  # fmt: skip
    with generating.prefix_cache(model, arguments.prefix_cache):
        if arguments.beams is not None:
            _print_beams(arguments, _searched(arguments, model, request))
        else:
            _answer(model, prompt, asked, arguments)


def _answer(model: Model, prompt: str, asked: dict[str, Any], arguments: argparse.Namespace) -> None:
    if arguments.json:
        _print_generation(model.generate(prompt, **asked))
        return
    last = print_stream(model.stream(prompt, **asked))
    if last is not None and last.stats is not None:
        print(summary(last.stats), file=sys.stderr)
        end = ended(last.finish_reason, arguments.max_new_tokens)
        if end:
            print(f"spqt: {end}", file=sys.stderr)


def _check_beams(arguments: argparse.Namespace, sampling: Sampling) -> None:
    """Raise GenerationError for options that beam search does not go with."""
    from spqt_ti.generation.beams import Beams
    from spqt_ti.generation.sampling import Sampling

    if arguments.best > (arguments.beams or 1):
        raise GenerationError(f"--best {arguments.best} needs --beams {arguments.best} or more")
    if arguments.beams is None:
        return
    Beams(arguments.beams, arguments.length_penalty)
    if sampling != Sampling() or arguments.stop:
        raise GenerationError("--beams searches for likely texts: it goes with no option of sampling, nor with --stop")
    if arguments.on_overflow != "stop":
        raise GenerationError("--beams ends where the context is full: it does not go with --on-overflow slide")


def _searched(arguments: argparse.Namespace, model: Model, request: Request) -> BeamGeneration:
    found = model.beam_search(
        request.prompt, beams=arguments.beams, length_penalty=arguments.length_penalty,
        max_new_tokens=request.max_new_tokens, chat=request.chat, constraint=request.constraint,
    )  # fmt: skip
    return dataclasses.replace(found, beams=found.beams[: arguments.best])


def _print_beams(arguments: argparse.Namespace, found: BeamGeneration) -> None:
    if arguments.json:
        beams = [dataclasses.asdict(beam) for beam in found.beams]
        print_json({"beams": beams, **dataclasses.asdict(found.stats)})
        return
    shown = for_terminal if sys.stdout.isatty() else str
    for rank, beam in enumerate(found.beams, 1):
        if arguments.best > 1:
            mean = beam.log_probability / len(beam.token_ids)
            print(f"[{rank}: log-probability {beam.log_probability:.2f}, {mean:.3f} per token]")
        print(shown(beam.text), flush=True)
    print(summary(found.stats), file=sys.stderr)
    end = ended(found.beams[0].finish_reason, arguments.max_new_tokens)
    if end:
        print(f"spqt: {end}", file=sys.stderr)


def _prompt(arguments: argparse.Namespace) -> str:
    """The prompt from the command line, a file, or stdin. Raises GenerationError where it cannot be read."""
    given = [text for text in (arguments.prompt, arguments.also_prompt) if text is not None]
    if len(given) + (arguments.file is not None) != 1:
        arguments.parser.error("give a PROMPT, - to read it from stdin, or --file FILE, and one of them only")
    if arguments.file is not None:
        return read_text(arguments.file, GenerationError)
    if given != ["-"]:
        return _whole(str(given[0]))
    if sys.stdin is None:
        raise GenerationError("there is no stdin to read the prompt from")
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise GenerationError(f"stdin is not UTF-8 text: {error}") from error


def _whole(argument: str) -> str:
    """UTF-8 on the command line where the locale knows ASCII alone: Python then escapes each of its bytes."""
    if argument.isascii() or not any("\udc80" <= c <= "\udcff" for c in argument):
        return argument
    with contextlib.suppress(UnicodeError):
        return os.fsencode(argument).decode()
    return argument  # refused later, with where it is


def ended(reason: str | None, wanted: int) -> str:
    """Why a text ended where the model would have gone on; nothing at its own end."""
    if reason == "length":
        return f"cut off after {wanted} tokens: ask for more with --max-new-tokens"
    if reason == "context":
        return "cut off because the context is full: --context gives more, --on-overflow slide goes on"
    return ""


def print_stream(pieces: Iterable[Piece]) -> Piece | None:
    """Print pieces as they come, then a line end, even if Ctrl-C cuts them off; return the last one."""
    last = None
    shown = for_terminal if sys.stdout.isatty() else str
    try:
        for piece in pieces:
            last = piece
            print(shown(piece.text), end="", flush=True)
    finally:
        if last is not None:
            print(flush=True)
    return last


def summary(stats: Stats) -> str:
    """The last line: speeds, what was skipped, bytes read."""
    skipped = f"{stats.realised_sparsity:.0%} of the weights skipped, " if stats.realised_sparsity else ""
    slid = f"the window slid {stats.slides} times; " if stats.slides else ""
    return (
        f"{slid}prompt {stats.prompt_tokens} tokens, {stats.prompt_tokens_per_second:.1f}/s; "
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
