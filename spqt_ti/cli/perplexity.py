"""`spqt perplexity`: what sparsity costs on a text."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spqt_ti.cli import options
from spqt_ti.cli.output import print_rows
from spqt_ti.cli.signals import held_back
from spqt_ti.errors import PolicyError
from spqt_ti.tables import Table

if TYPE_CHECKING:
    from spqt_ti.evaluation.perplexity import Scores
    from spqt_ti.sparsity.policy import SparsityPolicy


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "perplexity",
        help="what sparsity costs on a text",
        description="Perplexity, and distance from the dense model, over windows of a text whose second halves are "
        "scored, as llama.cpp does. Every token is treated as if it were decoded sparsely (masked prefill).",
    )
    options.add_model(parser)
    options.add_text(parser, "to score; not the one calibrated on")
    options.add_levels(parser, "uniform levels (default: 0 where there is no --policy)")
    options.add_policies(parser, "score")
    parser.add_argument(
        "--context", type=options.count, default=512, metavar="N", help="window (default: %(default)s tokens)"
    )
    parser.add_argument("--windows", type=options.count, metavar="N", help="score the first N windows (default: all)")
    options.add_threads(parser)
    options.add_formats(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate and print the table."""
    with held_back():
        from spqt_ti.api import load
        from spqt_ti.benchmark.provenance import provenance
        from spqt_ti.evaluation.perplexity import evaluate, windows
        from spqt_ti.sparsity.methods.uniform import sample_text
        from spqt_ti.sparsity.shared_policies import find_policy
        from spqt_ti.texts import check_disjoint, paragraph_hashes, read_text
    text = read_text(arguments.text)
    policies = [find_policy(path) for path in arguments.policy]
    model = load(arguments.model, threads=arguments.threads, context=arguments.context)
    for transformation in model.container.transformations:
        check_disjoint(text, transformation, "the model was quantised with")
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
    files = [None] * len(uniform) + arguments.policy
    parts = windows(model.tokenizer.encode(text), arguments.context, arguments.windows, model.tokenizer.bos)
    scores = evaluate(model.llama, parts, measured)
    rows = [_fields(*case) for case in zip(scores, measured, files, strict=True)]
    print_rows(
        arguments, rows, _table(rows),
        f"{arguments.model}: {rows[0]['tokens']} tokens of {Path(arguments.text).name} scored, each as if decoded "
        f"sparsely; windows of {arguments.context}; ± over tokens; KL in nats from the dense model",
        provenance(model.llama.threads, model.llama.device),
    )  # fmt: skip


def _fields(score: Scores, policy: SparsityPolicy | None, file: str | None) -> dict[str, Any]:
    """A row. `inputs_skipped`: per layer, site -> share."""
    from spqt_ti.model.sites import SITES

    assert score.active is not None
    skipped = [dict(zip(SITES, layer, strict=True)) for layer in score.active.share_skipped.round(4).tolist()]
    return {
        "method": policy.method if policy else "dense",
        "policy": file,
        **dataclasses.asdict(score.row(policy.sparsity if policy else 0.0)),
        "inputs_skipped": skipped,
    }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    titles = ["policy", "level", "weights skipped", "perplexity", "KL mean", "KL p99", "same top 1"]
    return Table(
        titles,
        [
            [
                f"{r['method']} ({Path(r['policy']).name})" if r["policy"] else r["method"], f"{r['sparsity']:.0%}",
                f"{r['realised_sparsity']:.1%}", f"{r['perplexity']:.3f} ± {r['perplexity_se']:.3f}",
                f"{r['kl_mean']:.4f}", f"{r['kl_p99']:.3f}", f"{r['top1']:.1%}",
            ]
            for r in rows
        ],
    )  # fmt: skip
