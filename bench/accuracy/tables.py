"""Calibrate by every method at every level, and evaluate all of it on another text: the tables of docs/accuracy.md.

    python bench/accuracy/texts.py texts
    python bench/accuracy/tables.py smollm2-135m --text texts/calibration.txt --evaluation texts/evaluation.txt \
        --policies policies -o results.json

Policies that are in the folder already, from the same model and text, are not made again. The results also hold what
plots.py draws: what was skipped per layer and site, and the mean KL divergence of every window.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import spqt_ti
from spqt_ti.cli.levels import levels
from spqt_ti.cli.main import main as spqt
from spqt_ti.errors import PolicyError, SpqtError
from spqt_ti.evaluation.perplexity import Scores, evaluate, mean_and_error, windows
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.texts import check_disjoint, read_text


def policy_path(folder: Path, method: str, level: float) -> Path:
    """Where the policy of a method at a level lies, which is where `spqt calibrate` puts it."""
    return folder / f"{method}-{level:g}.json"


def calibrate(arguments: argparse.Namespace, method: str, fingerprint: str) -> None:
    """Run `spqt calibrate` for the levels that the folder lacks."""
    sha256 = hashlib.sha256(read_text(arguments.text).encode()).hexdigest()
    missing = [
        level
        for level in arguments.sparsity
        if not made_before(policy_path(arguments.policies, method, level), fingerprint, sha256)
    ]
    if not missing:
        return
    # A single level is not put into the name of its file by the command.
    output = policy_path(arguments.policies, method, missing[0]) if len(missing) == 1 else f"{method}.json"
    code = spqt([
        "calibrate", arguments.model, "--method", method, "--sparsity", ",".join(f"{level:g}" for level in missing),
        "--text", str(arguments.text), "--tokens", str(arguments.tokens), "-o", str(arguments.policies / output),
    ])  # fmt: skip
    if code:
        sys.exit(code)


def made_before(path: Path, fingerprint: str, sha256: str) -> bool:
    """True for a policy of this model and calibration text."""
    try:
        policy = SparsityPolicy.load(path)
    except PolicyError:
        return False
    return policy.model == fingerprint and policy.calibration.get("text_sha256") == sha256


def row(method: str, level: float, score: Scores, rival: Scores | None) -> dict[str, Any]:
    """A line of the table; `rival`: the same level of the first method, for the paired difference."""
    fields = {"method": method, **dataclasses.asdict(score.row(level))}
    fields["kl_se"] = mean_and_error(score.kl)[1]
    if rival is not None:
        change = mean_and_error([ours - theirs for ours, theirs in zip(score.kl, rival.kl, strict=True)])
        fields["kl_over_first"], fields["kl_over_first_se"] = change
    fields["kl_windows"] = [float(np.mean(kl)) for kl in score.kl]
    fields["skipped"] = (score.skipped / score.possible).round(4).tolist()
    return fields


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    first = next(r["method"] for r in rows if r["method"] != "dense")
    lines = [
        f"| method | level | realised | perplexity | KL mean | KL over {first}'s | KL p99 | same top 1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        paired = f"{r['kl_over_first']:+.3f} ± {r['kl_over_first_se']:.3f}" if "kl_over_first" in r else ""
        lines.append(
            f"| {r['method']} | {r['sparsity']:.0%} | {r['realised_sparsity']:.3f} | {r['perplexity']:.2f} ± "
            f"{r['perplexity_se']:.2f} | {r['kl_mean']:.3f} ± {r['kl_se']:.3f} | {paired} | {r['kl_p99']:.2f} "
            f"| {r['top1']:.1%} |"
        )
    return "\n".join([*lines, "", f"{rows[0]['tokens']} tokens scored"])


def main() -> None:
    """Calibrate what is missing, evaluate everything, write the results, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name, Hugging Face directory, .gguf file or quantised directory")
    parser.add_argument("--text", type=Path, required=True, help="to calibrate on")
    parser.add_argument("--tokens", type=int, default=20000, help="of it (default: %(default)s)")
    parser.add_argument("--evaluation", type=Path, required=True, help="text to evaluate on")
    parser.add_argument("--methods", default="uniform,wina,teal", help="default: %(default)s")
    parser.add_argument("--sparsity", type=levels, default=[0.25, 0.4, 0.5, 0.65])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--policies", type=Path, required=True, help="folder for the policies")
    parser.add_argument("-o", "--output", type=Path, required=True, help="results, as JSON")
    arguments = parser.parse_args()
    try:
        run(arguments)
    except SpqtError as error:
        sys.exit(f"error: {error}")


def run(arguments: argparse.Namespace) -> None:
    """What `main` has parsed."""
    arguments.policies.mkdir(parents=True, exist_ok=True)
    model = spqt_ti.load(arguments.model, context=arguments.context)
    text, methods = read_text(arguments.evaluation), arguments.methods.split(",")
    for method in methods:
        calibrate(arguments, method, model.container.fingerprint)
    cases = [(method, level) for level in arguments.sparsity for method in methods]
    policies = [SparsityPolicy.load(policy_path(arguments.policies, *case)) for case in cases]
    for policy in policies:
        policy.check(model.container.fingerprint, model.llama.config.num_hidden_layers)
        check_disjoint(text, policy.calibration)
    parts = windows(model.tokenizer.encode(text), arguments.context, arguments.windows, model.tokenizer.bos)
    dense, *scores = evaluate(model.llama, parts, [None, *policies])
    of = dict(zip(cases, scores, strict=True))
    rows = [row("dense", 0.0, dense, None)]
    for method, level in cases:
        rival = of[methods[0], level] if method != methods[0] else None
        rows.append(row(method, level, of[method, level], rival))
    what = {"model": arguments.model, "context": arguments.context, "windows": len(parts), "rows": rows}
    arguments.output.write_text(json.dumps(what, indent=1) + "\n", encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
