"""`spqt allocate`: how much of each layer may go, as a plan of static pruning or a policy of dynamic sparsity."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from spqt_ti.cli import options
from spqt_ti.cli.execution import add_execution, executor_of
from spqt_ti.cli.output import print_json
from spqt_ti.cli.signals import held_back
from spqt_ti.paths import expanded

if TYPE_CHECKING:
    from pathlib import Path

    from spqt_ti.container import Container
    from spqt_ti.sparsity.policy import SparsityPolicy

MODES = ("corrected", "paper", "uniform", "greedy", "least-sum")  # spelled out here too, so that --help needs no NumPy
MEASURES = ("kl", "perplexity")
TOKENS = 20000  # of a text


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "allocate",
        help="share a budget of pruning or sparsity out over the layers",
        description="Measure what each layer's pruning costs on a text, and choose rates per group of layers that keep "
        "the rise of the perplexity within a limit (ASAF). Writes a plan for `spqt quantize --plan`, or with --dynamic "
        "a policy. What is measured is kept: after Ctrl-C the same command goes on where it was.",
    )
    options.add_model(parser)
    options.add_text(parser, "to measure on")
    parser.add_argument("--mode", choices=MODES, default="corrected", help="(default: %(default)s)")
    parser.add_argument(
        "--delta-max", type=share, metavar="D", help="rise of the perplexity that is allowed (default: 0.01, for 1 %%)"
    )
    parser.add_argument("--measure", choices=MEASURES, default="kl", help="kl is quieter (default: %(default)s)")
    parser.add_argument(
        "--windows", type=options.count, default=4, metavar="N", help="of 256 tokens (default: %(default)s)"
    )
    static = parser.add_argument_group("static pruning")
    static.add_argument("--alpha", type=share, default=0.01, metavar="R", help="lowest rate (default: %(default)s)")
    static.add_argument("--beta", type=share, default=0.15, metavar="R", help="highest rate (default: %(default)s)")
    static.add_argument("--rate-step", type=share, default=0.02, metavar="R", help="(default: %(default)s)")
    static.add_argument(
        "--exact", action="store_true", help="measure every range of layers instead of adding layers up"
    )
    dynamic = parser.add_argument_group("dynamic sparsity")
    dynamic.add_argument("--dynamic", action="store_true", help="budgets per layer for decoding; writes a policy")
    dynamic.add_argument("--sparsity", type=options.level, metavar="S", help="mean to reach, instead of --delta-max")
    parser.add_argument(
        "--tokens", type=options.count, default=TOKENS, metavar="N", help="use at most (default: %(default)s)"
    )
    parser.add_argument("--checkpoints", metavar="DIR", help="folder for what is done (default: in the cache folder)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="plan or policy to write")
    add_execution(parser)
    options.add_json(parser)
    parser.set_defaults(run=run)


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a share such as 0.01, not {text!r}") from None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, not {text}")
    return value


def run(arguments: argparse.Namespace) -> None:
    """Measure, allocate, write and say what was found."""
    with held_back():
        from spqt_ti.api import open_quantized
        from spqt_ti.errors import AllocationError
        from spqt_ti.sparsity.methods import checkpoint_folder
        from spqt_ti.sparsity.search.evolution import Search
        from spqt_ti.texts import read_text
    if arguments.sparsity is not None and not arguments.dynamic:
        raise AllocationError("--sparsity is for --dynamic; static pruning keeps --delta-max")
    check_settings(arguments)
    text = read_text(arguments.text)
    container = open_quantized(arguments.model)
    folder = checkpoint_folder(container, text, arguments.tokens, Search())
    if arguments.checkpoints is not None:
        folder = expanded(arguments.checkpoints)
    try:
        report = (_dynamic if arguments.dynamic else _static)(arguments, container, text, folder)
    except KeyboardInterrupt:
        print(f"spqt: what is done is in {folder}; the same command goes on from there", file=sys.stderr)
        raise
    if arguments.json:
        print_json(report)
    else:
        print(report["summary"])


def check_settings(arguments: argparse.Namespace) -> Any:
    """The settings of the chosen kind; AllocationError before any work."""
    from spqt_ti.sparsity.allocate.dynamic import DynamicSettings
    from spqt_ti.sparsity.allocate.static import StaticSettings

    if arguments.dynamic:
        limit = 0.01 if arguments.delta_max is None and arguments.sparsity is None else arguments.delta_max
        return DynamicSettings(arguments.mode, arguments.sparsity, limit, arguments.measure, arguments.windows)
    limit = 0.01 if arguments.delta_max is None else arguments.delta_max
    return StaticSettings(
        arguments.mode, arguments.alpha, arguments.beta, arguments.rate_step, limit, arguments.measure,
        arguments.exact, arguments.windows,
    )  # fmt: skip


def _static(arguments: argparse.Namespace, container: Container, text: str, folder: Path) -> dict[str, Any]:
    from spqt_ti.generation.tokenizer import Tokenizer
    from spqt_ti.sparsity.allocate.static import ffn_weights, plan

    tokens = Tokenizer(container.tokenizer_json, container.config).encode(text)[: arguments.tokens]
    with executor_of(arguments, container) as executor:
        made = plan(container, text, tokens, check_settings(arguments), executor, folder, arguments.shared)
    output = expanded(arguments.output)
    made.save(output)
    removed = 1 - made.allocation.cost / float(ffn_weights(container).sum())
    groups = made.allocation.groups
    lines = [f"  layers {g.first} to {g.first + g.count - 1}: {g.rate:.1%}" for g in groups]
    head = (
        f"{output}: {removed:.2%} of the FFN in {len(groups)} groups; degradation {made.allocation.degradation:.3%} by "
        f"the table; on unseen windows KL {made.unseen_kl:.4f}, perplexity {made.unseen_perplexity:+.2%}"
    )
    return {
        "file": str(output), "removed": removed, "degradation": made.allocation.degradation,
        "unseen_kl": made.unseen_kl, "unseen_perplexity_rise": made.unseen_perplexity,
        "groups": [[g.first, g.count, g.rate] for g in groups], "summary": "\n".join([head, *lines]),
    }  # fmt: skip


def _dynamic(arguments: argparse.Namespace, container: Container, text: str, folder: Path) -> dict[str, Any]:
    policy = _dynamic_policy(arguments, container, text, folder)
    output = expanded(arguments.output)
    policy.save(output)
    budgets = policy.calibration["budgets"]
    return {
        "file": str(output), "sparsity": policy.sparsity, "budgets": budgets,
        "degradation": policy.calibration["degradation"],
        "summary": f"{output}: {policy.sparsity:.1%} on average, {min(budgets):.1%} to {max(budgets):.1%} per layer; "
        f"degradation {policy.calibration['degradation']:.3%} by the table",
    }  # fmt: skip


def _dynamic_policy(arguments: argparse.Namespace, container: Container, text: str, folder: Path) -> SparsityPolicy:
    import dataclasses

    from spqt_ti.api import load
    from spqt_ti.errors import PolicyError
    from spqt_ti.sparsity.allocate.dynamic import policy
    from spqt_ti.sparsity.checkpoint import Checkpoint, Identity
    from spqt_ti.sparsity.methods import MIN_TOKENS, teal
    from spqt_ti.texts import paragraph_hashes, sha256

    model = load(container)
    tokens = model.tokenizer.encode(text)[: arguments.tokens]
    if len(tokens) < MIN_TOKENS:
        raise PolicyError(f"{len(tokens)} tokens to calibrate on, expected {MIN_TOKENS} or more")
    identity: Identity = {"model": container.fingerprint, "text": sha256(text), "tokens": len(tokens)}
    calibration = teal.calibrate(model.llama, container, text, tokens, Checkpoint(folder, identity))
    with executor_of(arguments, container) as executor:
        made = policy(container, calibration, check_settings(arguments), executor, folder, arguments.shared)
    return dataclasses.replace(made, calibration={**made.calibration, "paragraphs": paragraph_hashes(text)})
