"""`spqt perplexity`: what sparsity costs on a text."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from spqt_ti.cli.levels import levels
from spqt_ti.cli.output import print_json
from spqt_ti.cli.signals import held_back
from spqt_ti.errors import PolicyError


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
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sparsity", type=levels, metavar="S,S,...", help="uniform levels (default: 0)")
    what.add_argument("--policy", action="append", metavar="FILE", help="a policy to evaluate; may be repeated")
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
        from spqt_ti.sparsity.policy import SparsityPolicy
        from spqt_ti.texts import check_disjoint, read_text
    text = read_text(arguments.text)
    policies = [SparsityPolicy.load(path) for path in arguments.policy or ()]
    model = load(arguments.model, threads=arguments.threads, context=arguments.context)
    for policy in policies:
        policy.check(model.container.fingerprint, model.llama.config.num_hidden_layers)
        check_disjoint(text, policy.calibration)
    if arguments.policy is None:
        calibration = model.calibrate()
        policies = [calibration.policy(level) for level in arguments.sparsity or (0.0,)]
    parts = windows(model.tokenizer.encode(text), arguments.context, arguments.windows)
    scores = evaluate(model.llama, parts, policies)
    rows = [score.row(policy.sparsity) for score, policy in zip(scores, policies, strict=True)]
    if arguments.json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    print("sparsity  realised  perplexity        KL mean  KL p99   same top 1")
    for row in rows:
        print(
            f"{row.sparsity:8.2f}  {row.realised_sparsity:8.3f}  {row.perplexity:8.3f} ± {row.perplexity_se:5.3f}  "
            f"{row.kl_mean:7.4f}  {row.kl_p99:7.3f}  {100 * row.top1:6.2f} %"
        )
    print(f"{rows[0].tokens} tokens scored, each as if decoded sparsely; windows of {arguments.context}")
