"""`spqt recommend`: which way to store and run a model is best for a speed, or for a quality."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from spqt_ti.cli import options
from spqt_ti.cli.output import print_json
from spqt_ti.cli.signals import held_back

if TYPE_CHECKING:
    from spqt_ti.evaluation.curve import Point


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "recommend",
        help="the best way to run a model at a speed or a quality",
        description="Pick from a model's curve of KL against bytes and tokens per second: the least KL at a speed, or "
        "the highest speed at a KL. The curve of smollm2-135m comes with the package; bench/accuracy/curve.py measures "
        "others.",
    )
    options.add_model(parser)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--speed", type=_factor, metavar="1.5x", help="times as fast as dense q4_k")
    group.add_argument("--kl", type=_kl, metavar="NATS", help="at most this far from the source")
    parser.add_argument("--curve", metavar="FILE", help="the model's curve (default: the package's)")
    options.add_json(parser)
    parser.set_defaults(run=run)


def _factor(text: str) -> float:
    return _positive(text.removesuffix("x"), "a factor such as 1.5x")


def _kl(text: str) -> float:
    return _positive(text, "nats such as 0.1")


def _positive(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {what}, not {text!r}") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected {what}, not {text}")
    return value


def run(arguments: argparse.Namespace) -> None:
    """Pick and say how to get it."""
    with held_back():
        from spqt_ti.errors import PolicyError
        from spqt_ti.evaluation.curve import Curve, recommend
    source = _source_sha256(arguments.model)
    curve = Curve.load(arguments.curve) if arguments.curve else Curve.known(source)
    if curve is None:
        raise PolicyError(
            f"{arguments.model}: no curve of this model comes with the package; measure one with "
            "bench/accuracy/curve.py and name it with --curve"
        )
    if source is not None and curve.source_sha256 != source:
        raise PolicyError(f"{arguments.curve}: the curve of {curve.model}, which is another model")
    point = recommend(curve, arguments.speed, arguments.kl)
    factor, measured = curve.speed(point)
    if arguments.json:
        print_json(
            {
                **dataclasses.asdict(point), "name": point.name, "speed": factor, "speed_measured": measured,
                "commands": commands_for(arguments.model, point),
            }
        )  # fmt: skip
        return
    how = "as measured" if measured else "by the bytes it reads"
    print(
        f"{point.name}: KL {point.kl:.4f} ± {point.kl_se:.4f} nats from the source, {factor:.2f} times as fast as "
        f"{curve.baseline().name} {how}, {point.bytes_per_token / 1e6:.1f} MB per token"
    )
    print("\n".join(f"  {command}" for command in commands_for(arguments.model, point)))


def commands_for(model: str, point: Point) -> list[str]:
    """What makes this point, and runs it."""
    folder = f"model-{point.scheme}-{point.quantizer}"
    found = [f"spqt quantize {model} {folder} --scheme {point.scheme} --method {point.quantizer}"]
    policy = ""
    if point.sparse_method:
        found.append(
            f"spqt calibrate {folder} --method {point.sparse_method} --sparsity {point.level:g} --text TEXT "
            "-o policy.json"
        )
        policy = " --policy policy.json"
    return [*found, f'spqt generate {folder} "PROMPT"{policy}']


def _source_sha256(model: str) -> str | None:
    """Of what a quantised directory was made from, or of a source model."""
    from spqt_ti.container import Container, Source
    from spqt_ti.convert.identity import files_of
    from spqt_ti.paths import expanded
    from spqt_ti.sources import registry

    path = expanded(model)
    if (path / "spqt.json").is_file():
        return Container.open(path, verify=False).source.sha256
    return Source(model, files_of(registry.resolve(model))).sha256
