"""`spqt quantize`: a source model into a quantised directory."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

from spqt_ti.cli import options
from spqt_ti.cli.info import describe_container
from spqt_ti.cli.output import megabytes, print_json
from spqt_ti.cli.signals import held_back
from spqt_ti.errors import QuantizationError
from spqt_ti.formats.names import NAMES
from spqt_ti.paths import expanded

if TYPE_CHECKING:
    from spqt_ti.container import Container

_log = logging.getLogger(__name__)


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "quantize",
        help="quantise a model into a new directory",
        description="Quantise a model: by default 4.5 bits per weight, the embedding and the head 8.5. The directory "
        "appears when it is complete, or not at all; the source is only read.",
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="Hugging Face directory, .gguf file, hub id or known name (see spqt pull)"
    )
    parser.add_argument("destination", metavar="DESTINATION", help="directory to make")
    parser.add_argument(
        "--scheme",
        type=_scheme,
        default="q4_k",
        metavar="SCHEME[,CLASS=SCHEME...]",
        help=f"format of the weights: {', '.join(NAMES)}; of single classes of matrix (qkv, o, gate_up, down, head) "
        "with CLASS=SCHEME, as in q4_k,down=q6_k,head=q6_k (default: %(default)s, and q8_0 for the head)",
    )
    parser.add_argument(
        "--layout",
        type=_layout,
        default="zigzag",
        metavar="LAYOUT[,CLASS=LAYOUT...]",
        help="order of the weights: zigzag skips inactive inputs, row is ggml's; of single classes as for --scheme "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--method",
        choices=("rtn", "gptq"),
        help="rtn rounds to the nearest; gptq makes later columns good for the errors of earlier ones on a calibration "
        "text: the same size and speed, nearer to the source, some minutes (default: gptq for smollm2-135m in zigzag "
        "layout, whose calibration comes along; else rtn)",
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="gptq, pruning: UTF-8 text for half of the calibration; the rest is drawn from the model "
        "(default: all of it)",
    )
    parser.add_argument(
        "--tokens", type=options.count, metavar="N", help="gptq, pruning: calibration tokens (default: 16384)"
    )  # fmt: skip
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument(
        "--plan", metavar="FILE", help="prune the layers' feed-forward networks at the rates of a plan (spqt allocate)"
    )
    rates.add_argument("--prune", type=options.level, metavar="RATE", help="prune all layers at one rate, as 0.1")
    parser.add_argument(
        "--pruning",
        choices=("compensated", "channels", "weights"),
        help="compensated removes channels and refits the others, channels only removes them, weights puts zeros for "
        "single weights, for studies (default: compensated)",
    )
    parser.add_argument(
        "--rotate",
        type=_components,
        default=(),
        metavar="COMPONENT[,COMPONENT]",
        help="rotate the residual stream, the values of the attention heads or the input of down, by randomised "
        "Hadamard transforms before: residual,heads,down (down costs a transform per layer and token). For studies: in "
        "the zigzag layout residual makes quantisation worse (docs/rotation.md)",
    )
    parser.add_argument(
        "--keep", action="store_true",
        help="with --layout row: keep matrices of a GGUF file that are Q2_K to Q6_K or Q8_0 bit for bit",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace the quantised model at DESTINATION")
    options.add_json(parser)
    parser.set_defaults(run=run)


def _scheme(text: str) -> str:
    """Checked now: a choice that there is not is wrong usage."""
    return _checked(text, "zigzag", text)


def _layout(text: str) -> str:
    return _checked("q4_k", text, text)


def _components(text: str) -> tuple[str, ...]:
    with held_back():
        from spqt_ti.convert.rotate import parse_components
    try:
        return parse_components(text)
    except QuantizationError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _checked(scheme: str, layout: str, text: str) -> str:
    with held_back():
        from spqt_ti.convert.choices import parse_storage
    try:
        parse_storage(scheme, layout)
    except QuantizationError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def run(arguments: argparse.Namespace) -> None:
    """Quantise and report size and time."""
    pruned = arguments.plan is not None or arguments.prune is not None
    chosen, arguments.method = arguments.method, arguments.method or _default_method(arguments, pruned)
    if arguments.method == "rtn" and not pruned and (arguments.text or arguments.tokens):
        raise QuantizationError(
            "--text and --tokens are for --method gptq and for pruning; rounding to the nearest reads no text"
        )
    if arguments.pruning and not pruned:
        raise QuantizationError("--pruning says how channels are pruned; give the rates with --plan or --prune")
    if arguments.keep and (arguments.method != "rtn" or pruned):
        raise QuantizationError("--keep leaves weights as they are: it takes no --method gptq and no pruning")
    if chosen is None and not pruned and _is_watched():
        _tell_method(arguments)
    start = time.perf_counter()
    calibrated = arguments.method == "gptq" or pruned
    container = _calibrated(arguments) if calibrated else _to_nearest(arguments)
    seconds = time.perf_counter() - start
    report = describe_container(container)
    if arguments.json:
        print_json({**report, "seconds": seconds})
    else:
        print(
            f"{container.path}: {report['parameters'] / 1e6:.1f} M parameters in {megabytes(report['bytes'])} "
            f"({container.summary()}{', by GPTQ' if arguments.method == 'gptq' else ''}), {seconds:.1f} s"
        )


def _is_watched() -> bool:
    """Whether a person sees stderr, and can stop what takes long."""
    return sys.stderr is not None and sys.stderr.isatty()


def _default_method(arguments: argparse.Namespace, pruned: bool) -> str:
    """GPTQ where its calibration comes with the package and its result is an ordinary zigzag model."""
    with held_back():
        from spqt_ti.convert.choices import parse_storage
        from spqt_ti.model.sites import SITES
        from spqt_ti.quantization import has_windows
    storage = parse_storage(arguments.scheme, arguments.layout)
    sites = [storage[site] for site in SITES]
    ordinary = not pruned and not arguments.keep and not arguments.rotate
    worth = all(site.layout == "zigzag" for site in sites) and any(site.scheme.name != "q8_0" for site in sites)
    return "gptq" if ordinary and worth and has_windows(arguments.source) else "rtn"


def _tell_method(arguments: argparse.Namespace) -> None:
    """Which method is the default here, and what the other one costs."""
    with held_back():
        from spqt_ti.convert.gptq_cost import gptq_seconds
        from spqt_ti.convert.quantize import open_source
        from spqt_ti.quantization import DEFAULT_TOKENS
    if arguments.method == "gptq":
        _log.info("by GPTQ, which takes about a minute on two cores; --method rtn takes seconds and loses twice that")
        return
    minutes = gptq_seconds(open_source(arguments.source).config, DEFAULT_TOKENS, DEFAULT_TOKENS) / 60
    _log.info(
        "rounded to the nearest; --method gptq loses half as much in as many bytes and takes about %s on two cores",
        "a minute" if minutes < 1.5 else f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours",
    )


def _to_nearest(arguments: argparse.Namespace) -> Container:
    with held_back():
        from spqt_ti.container import MANIFEST, check_destination
        from spqt_ti.convert.identity import cached_copy
        from spqt_ti.convert.quantize import open_source, quantize
    check_destination(arguments.destination, arguments.force)
    if not arguments.rotate and not arguments.keep and _is_watched():
        copy = cached_copy(open_source(arguments.source).source, arguments.scheme, arguments.layout)
        destination = expanded(arguments.destination).absolute()
        if (copy / MANIFEST).is_file() and copy != destination:
            _log.info("the same is in the cache already: %s may be used or copied instead", copy)
    return quantize(
        arguments.source, arguments.destination, arguments.layout, arguments.scheme, overwrite=arguments.force,
        rotate=arguments.rotate, seed=arguments.seed, keep=arguments.keep,
    )  # fmt: skip


def _calibrated(arguments: argparse.Namespace) -> Container:
    with held_back():
        from spqt_ti.convert.plan import PruningPlan
        from spqt_ti.quantization import DEFAULT_TOKENS, quantize_calibrated
        from spqt_ti.texts import read_text
    text = read_text(arguments.text, QuantizationError) if arguments.text else None
    plan = PruningPlan.load(arguments.plan) if arguments.plan else arguments.prune
    return quantize_calibrated(
        arguments.source, arguments.destination, method=arguments.method, scheme=arguments.scheme,
        layout=arguments.layout, text=text, tokens=arguments.tokens or DEFAULT_TOKENS, seed=arguments.seed, plan=plan,
        pruning=arguments.pruning or "compensated", rotate=arguments.rotate, overwrite=arguments.force,
    )  # fmt: skip
