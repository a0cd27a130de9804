"""Calibrate by every method at every level, and evaluate all of it on another text: the tables of docs/accuracy.md.

    python bench/accuracy/texts.py texts
    python bench/accuracy/tables.py smollm2-135m --text texts/calibration.txt --evaluation texts/evaluation.txt \
        --policies policies -o results.json

Nothing is done twice: policies of the same model and text that are in the folder are not made again, and rows that
the results have already (of the same policy, text, context and windows) are kept. So methods and levels may be added
one after the other. The results also hold what plots.py draws: what was skipped per layer and site.
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
from spqt_ti.benchmark.provenance import provenance
from spqt_ti.cli.main import main as spqt
from spqt_ti.cli.options import levels
from spqt_ti.errors import PolicyError, SpqtError
from spqt_ti.evaluation.perplexity import Scores, evaluate, windows
from spqt_ti.sparsity.methods import METHODS
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.tables import Table, print_table
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


def read_results(path: Path, header: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Hash of a policy -> its row, from an earlier run with the same header."""
    if not path.exists():
        return {}
    results = json.loads(path.read_text(encoding="utf-8"))
    rows = results.pop("rows")
    if results != header:
        sys.exit(f"{path} holds results of {results}, this run is {header}; name another file")
    return {row["policy"]: row for row in rows}


def measured(policy: SparsityPolicy | None, score: Scores) -> dict[str, Any]:
    """A row of the results; `kl_windows` is for paired comparisons."""
    return {
        "policy": digest(policy),
        "method": policy.method if policy else "dense",
        **dataclasses.asdict(score.row(policy.sparsity if policy else 0.0)),
        "kl_windows": [float(np.mean(kl)) for kl in score.kl],
        "skipped": score.active.share_skipped.round(4).tolist() if score.active else [],
    }


def digest(policy: SparsityPolicy | None) -> str:
    """What a row of the results is known by."""
    return hashlib.sha256(policy.to_json().encode()).hexdigest()[:16] if policy else "dense"


def difference(row: dict[str, Any], rows: Sequence[dict[str, Any]], rival: str) -> str:
    """KL over the rival's at the same level, paired by window."""
    theirs = [r for r in rows if r["method"] == rival and r["sparsity"] == row["sparsity"]]
    if not theirs or row["method"] == rival:
        return ""
    change = np.subtract(row["kl_windows"], theirs[0]["kl_windows"])
    return with_error(change.mean(), change, "+")


def table(rows: Sequence[dict[str, Any]], rivals: Sequence[str]) -> Table:
    """The rows as a table."""
    over = [f"KL over {rival}'s" for rival in rivals]
    titles = ["method", "level", "weights skipped", "perplexity", "KL mean", *over, "KL p99", "same top 1"]
    lines = []
    for r in rows:
        kl = np.array(r["kl_windows"])
        cells = (
            r["method"],
            f"{r['sparsity']:.0%}",
            f"{r['realised_sparsity']:.3f}",
            f"{r['perplexity']:.2f} ± {r['perplexity_se']:.2f}",
            with_error(r["kl_mean"], kl),
            *(difference(r, rows, rival) for rival in rivals),
            f"{r['kl_p99']:.2f}",
            f"{r['top1']:.1%}",
        )
        lines.append(cells)
    return Table(titles, lines)


def with_error(mean: float, windows: np.ndarray, sign: str = "") -> str:
    """A mean with its standard error over windows, where there are several."""
    error = f" ± {windows.std(ddof=1) / windows.size**0.5:.3f}" if windows.size > 1 else ""
    return f"{mean:{sign}.3f}{error}"


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
    parser.add_argument("--rivals", default="uniform,teal", help="paired with (default: %(default)s)")
    parser.add_argument("--threads", type=int)
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
    model = spqt_ti.load(arguments.model, threads=arguments.threads, context=arguments.context)
    text, methods = read_text(arguments.evaluation), arguments.methods.split(",")
    header = {
        "model": arguments.model, "fingerprint": model.container.fingerprint, "context": arguments.context,
        "windows": arguments.windows, "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }  # fmt: skip
    rows = read_results(arguments.output, header)
    for method in methods:
        calibrate(arguments, method, model.container.fingerprint)
    cases = [(method, level) for level in arguments.sparsity for method in methods]
    policies = [SparsityPolicy.load(policy_path(arguments.policies, *case)) for case in cases]
    for policy in policies:
        policy.check(model.container.fingerprint, model.llama.config.num_hidden_layers)
        check_disjoint(text, policy.calibration)
    wanted = [policy for policy in (None, *policies) if digest(policy) not in rows]
    parts = windows(model.tokenizer.encode(text), arguments.context, arguments.windows, model.tokenizer.bos)
    for policy, score in zip(wanted, evaluate(model.llama, parts, wanted) if wanted else (), strict=True):
        rows[digest(policy)] = measured(policy, score)
    order = ("dense", *METHODS)
    ordered = sorted(rows.values(), key=lambda r: (r["sparsity"], order.index(r["method"])))
    arguments.output.write_text(json.dumps({**header, "rows": ordered}, indent=1) + "\n", encoding="utf-8")
    print_table(
        table(ordered, arguments.rivals.split(",")),
        f"{arguments.model}: {ordered[0]['tokens']} tokens of {arguments.evaluation.name} scored, windows of "
        f"{arguments.context}; ± over windows, of perplexity over tokens",
        provenance(model.llama.threads, model.llama.device),
    )


if __name__ == "__main__":
    main()
