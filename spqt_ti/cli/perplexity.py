"""`spqt perplexity`: what sparsity costs on a text."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spqt_ti.cli.levels import levels
from spqt_ti.cli.output import print_json
from spqt_ti.cli.signals import held_back
from spqt_ti.errors import PolicyError

if TYPE_CHECKING:
    from spqt_ti.evaluation.perplexity import Row


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "perplexity",
        help="what sparsity costs on a text",
        description="Perplexity, and distance from the dense model, over windows of a text whose second halves are "
        "scored, as llama.cpp does. Every token is treated as if it were decoded sparsely (masked prefill).",
    )
    parser.add_argument("model", metavar="MODEL", help="as for generate")
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text; not the one calibrated on")
    parser.add_argument(
        "--sparsity", type=levels, metavar="S,S,...", help="uniform levels (default: 0 where there is no --policy)"
    )
    parser.add_argument("--policy", action="append", default=[], metavar="FILE", help="a policy; may be repeated")
    parser.add_argument("--context", type=int, default=512, metavar="N", help="window (default: %(default)s tokens)")
    parser.add_argument("--windows", type=int, metavar="N", help="evaluate the first N windows (default: all)")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")
    parser.add_argument("--json", action="store_true", help="print JSON rows")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate and print the table."""
    if arguments.windows is not None and arguments.windows < 1:
        raise PolicyError(f"--windows must be 1 or more, not {arguments.windows}")
    with held_back():
        from spqt_ti.api import load
        from spqt_ti.evaluation.perplexity import evaluate, windows
        from spqt_ti.sparsity.methods.uniform import sample_text
        from spqt_ti.sparsity.policy import SparsityPolicy
        from spqt_ti.texts import check_disjoint, paragraph_hashes, read_text
    text = read_text(arguments.text)
    policies = [SparsityPolicy.load(path) for path in arguments.policy]
    model = load(arguments.model, threads=arguments.threads, context=arguments.context)
    for path, policy in zip(arguments.policy, policies, strict=True):
        try:
            policy.check(model.container.fingerprint, model.llama.config.num_hidden_layers)
            check_disjoint(text, policy.calibration)
        except PolicyError as error:
            raise PolicyError(f"{path}: {error}") from error
    uniform = arguments.sparsity or ([] if policies else [0.0])
    if any(uniform):
        check_disjoint(text, {"paragraphs": paragraph_hashes(sample_text())})
    measured = [model.calibrate().policy(level) if level else None for level in uniform] + policies
    parts = windows(model.tokenizer.encode(text), arguments.context, arguments.windows, model.tokenizer.bos)
    scores = evaluate(model.llama, parts, measured)
    rows = [score.row(policy.sparsity if policy else 0.0) for score, policy in zip(scores, measured, strict=True)]
    if arguments.json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    _print_table([policy.method if policy else "dense" for policy in measured], rows)
    print(f"{rows[0].tokens} tokens scored, each as if decoded sparsely; windows of {arguments.context}")


def _print_table(methods: Sequence[str], rows: Sequence[Row]) -> None:
    print("method    sparsity  realised  perplexity        KL mean  KL p99   same top 1")
    for method, row in zip(methods, rows, strict=True):
        print(
            f"{method:8}  {row.sparsity:8.2f}  {row.realised_sparsity:8.3f}  {row.perplexity:8.3f} ± "
            f"{row.perplexity_se:5.3f}  {row.kl_mean:7.4f}  {row.kl_p99:7.3f}  {100 * row.top1:6.2f} %"
        )
