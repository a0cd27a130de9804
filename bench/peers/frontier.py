"""Tokens/s against KL to the source: our ways to store and run a model and the peers' types, in one run and one plot.

    python bench/accuracy/curve.py smollm2-135m ... --folder curve          # the reference and the policies
    python bench/peers/frontier.py smollm2-135m --text evaluation.txt --folder curve --windows 8 \\
        --container made/q4_k-gptq --container made/q5_k-gptq --plot frontier.png

`--folder` is that of bench/accuracy/curve.py, for the same text and windows: KL is from its reference, and a container
runs dense and with its policies there. The peers score the same windows in their own interpreters and quantise by
their own quantisers (`--types`, `--ik-types`). Decoding is timed in interleaved rounds, each side in a process of its
own. For every `--kl` the last lines compare the fastest that is no farther from the source. See decode.py for the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # its neighbours, also when loaded from elsewhere
sys.path.insert(0, str(Path(__file__).parents[1] / "accuracy"))
from perplexity import NOT_MEASURED, chosen, peer_scores, reasons, versions
from processes import ask, requantised, server, source_type
from programs import IK_LLAMA_CPP, LLAMA_CPP

OURS = "spqt_ti"
IK_TYPES = "source,Q4_0,Q4_1,Q4_K_S,Q4_K_M,IQ4_K,Q6_K,Q8_0"
LLAMA_TYPES = "Q2_K,Q3_K_M,source,Q4_0,Q4_K_S,Q4_K_M,IQ4_NL,IQ4_XS,Q5_K_M,Q6_K,Q8_0"


@dataclass
class Row:
    """A way to run the model. `kl`: nats per token from the source, `kl_se` over windows; `speeds`: tokens/s."""

    program: str
    weights: str
    kl: float = 0.0
    kl_se: float = 0.0
    perplexity: float = 0.0
    speeds: list[float] = field(default_factory=list)
    missing: str = ""  # why it was not measured

    @property
    def speed(self) -> float:
        """The median."""
        return float(np.median(self.speeds))

    def score(self, nll: np.ndarray, kl: np.ndarray) -> None:
        """From values f64 [windows] or [windows, n]."""
        means = kl.reshape(len(kl), -1).mean(axis=1)
        self.kl, self.perplexity = float(means.mean()), float(np.exp(nll.mean()))
        self.kl_se = float(means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else 0.0


def serve(threads: int, tokens: int, cases: Sequence[Sequence[str]]) -> None:
    """Answer each line of stdin, the number of a case (container, policy or ""), with tokens/s of one run."""
    from spqt_ti import load
    from spqt_ti.benchmark.decode import PROMPT, decode_once
    from spqt_ti.sparsity.policy import SparsityPolicy

    models = {container: load(container, threads=threads) for container, _ in cases}
    policies = [SparsityPolicy.load(policy) if policy else None for _, policy in cases]
    for model in models.values():
        model.llama.warm_up_prefill()
        model.llama.warm_up_decode()
    print("ready", flush=True)
    for line in sys.stdin:
        number = int(line)
        model = models[cases[number][0]]
        model.apply(policies[number])
        print(decode_once(model, model.tokenizer.encode(PROMPT), tokens)[0], flush=True)


def own_rows(arguments: argparse.Namespace) -> tuple[list[Row], list[tuple[str, str]], list[int]]:
    """Our rows with their KL, the cases behind them (container, policy or ""), and the text's token ids."""
    from curve import Case, quantizer_of, scheme_of, scores_of

    from spqt_ti.container import Container
    from spqt_ti.evaluation.perplexity import windows
    from spqt_ti.generation.tokenizer import Tokenizer
    from spqt_ti.sparsity.policy import SparsityPolicy
    from spqt_ti.texts import read_text

    rows, cases, ids = [], [], []
    for path in arguments.container:
        container = Container.open(path)
        tokenizer = Tokenizer(container.tokenizer_json, container.config)
        ids = tokenizer.encode(read_text(arguments.text))
        parts = windows(ids, arguments.context, arguments.windows, tokenizer.bos)
        policies = sorted((arguments.folder / "policies" / container.fingerprint).glob("*.json"))
        own = [Case(container), *(Case(container, policy) for policy in policies)]
        for case, scores in zip(own, scores_of(arguments, container, own, parts), strict=True):
            policy = None if case.policy is None else SparsityPolicy.load(case.policy)
            label = f"{scheme_of(container)} {quantizer_of(container)}"
            row = Row(OURS, label + (f", {policy.method} {policy.sparsity:.0%}" if policy else ", dense"))
            row.score(scores.nll, scores.kl)
            rows.append(row)
            cases.append((path, str(case.policy or "")))
    return rows, cases, ids


def check_reference(arguments: argparse.Namespace) -> None:
    """Exit where the folder's reference is of another text or other windows."""
    from spqt_ti.texts import read_text, sha256

    path = arguments.folder / "of.json"
    if not path.is_file():
        sys.exit(f"{path} is not there: bench/accuracy/curve.py makes the folder")
    found = json.loads(path.read_text(encoding="utf-8"))
    wanted = {
        "text_sha256": sha256(read_text(arguments.text)), "context": arguments.context, "windows": arguments.windows
    }  # fmt: skip
    if unlike := [key for key, value in wanted.items() if found.get(key) != value]:
        sys.exit(f"{arguments.folder} was measured with {found}, this run asks for {wanted}: unlike in {unlike}")


def measure(arguments: argparse.Namespace) -> list[Row]:
    """The rows of all programs."""
    from spqt_ti.sources import registry

    check_reference(arguments)
    source = registry.resolve(arguments.model)
    ours, cases, ids = own_rows(arguments)
    sizes = [str(arguments.threads), str(arguments.tokens)]
    peers: list[Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = {}
        for peer, scheme in chosen(arguments):
            row = Row(peer.name, f"{source_type(source)}, the source" if scheme == "source" else scheme)
            peers.append(row)
            try:
                path = requantised(peer, source, scheme, folder)
                found = peer_scores(peer, arguments, path, folder, (arguments.folder / "reference").absolute())
                if found.ids != ids:
                    sys.exit("the tokenizers disagree on this text, so there is nothing to compare")
                row.score(found.nll, found.kl)
                command = [peer.python, "-c", peer.speed, str(path), *sizes, arguments.prompt]
                processes[len(peers) - 1] = stack.enter_context(server(command))
            except SystemExit as error:
                row.missing = str(error)
        own = [sys.executable, __file__, arguments.model, "--serve", json.dumps(cases), "--threads", sizes[0]]
        process = stack.enter_context(server([*own, "--tokens", sizes[1]]))
        for _ in range(arguments.rounds):
            for number, other in processes.items():
                peers[number].speeds += ask(other, "decode")
            for number, row in enumerate(ours):
                row.speeds += ask(process, str(number))
    return [*peers, *ours]


def frontier(rows: Sequence[Row]) -> list[Row]:
    """Those that nothing is both faster and nearer to the source than."""
    return [row for row in rows if not any(o.speed > row.speed and o.kl < row.kl for o in rows)]


def at_kl(rows: Sequence[Row], kl: float) -> Row | None:
    """The fastest that is no farther from the source than `kl`."""
    return max((row for row in rows if row.kl <= kl), key=lambda row: row.speed, default=None)


def comparisons(rows: Sequence[Row], kls: Sequence[float]) -> list[str]:
    """A line for each KL: our fastest over the peers'."""
    lines = []
    for kl in kls:
        ours, peers = (at_kl([row for row in rows if (row.program == OURS) is own], kl) for own in (True, False))
        if ours is None or peers is None:
            lines.append(f"KL {kl:g}: {'no peer' if ours else 'none of ours'} is that near to the source")
            continue
        lines.append(
            f"KL {kl:g}: {ours.weights} {ours.speed:.0f} tokens/s, {peers.program} {peers.weights} {peers.speed:.0f}: "
            f"{ours.speed / peers.speed:.2f}x"
        )
    return lines


def draw(rows: Sequence[Row], path: Path, model: str) -> None:
    """KL over tokens/s, a line per program or container (needs matplotlib)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = f"{OURS} {row.weights.split(',')[0]}" if row.program == OURS else row.program
        groups.setdefault(name, []).append(row)
    for name, group in groups.items():
        ordered = sorted(group, key=lambda row: row.speed)
        own = ordered[0].program == OURS
        axes.plot(
            [row.speed for row in ordered], [row.kl for row in ordered], "o-" if own else "s", label=name, markersize=5
        )
        for row in ordered:
            mark = row.weights.split(", ")[-1].replace("teal ", "") if own else row.weights.replace(", the source", "")
            axes.annotate(mark, (row.speed, row.kl), (4, 3), textcoords="offset points", fontsize="xx-small")
    axes.set(xlabel="tokens/s", ylabel="KL from the source, nats per token", yscale="log", title=model)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print, draw."""
    from curve import add_execution

    from spqt_ti.benchmark.decode import PROMPT

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name or .gguf file")
    parser.add_argument("--text", help="the text that the folder's reference is of")
    parser.add_argument("--folder", type=Path, help="of bench/accuracy/curve.py")
    parser.add_argument("--container", action="append", default=[], metavar="DIR", help="ours; may be repeated")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--types", default=LLAMA_TYPES, help="llama.cpp's types (default: %(default)s)")
    parser.add_argument("--ik-types", default=IK_TYPES, help="ik_llama.cpp's types (default: %(default)s)")
    parser.add_argument("--kl", type=lambda text: [float(kl) for kl in text.split(",")], default=[0.05, 0.1, 0.2])
    parser.add_argument("--peer-python", default=sys.executable, help=f"an interpreter that has {LLAMA_CPP.package}")
    parser.add_argument("--ik-python", default=sys.executable, help=f"an interpreter that has {IK_LLAMA_CPP.package}")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    add_execution(parser)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.threads, arguments.tokens, json.loads(arguments.serve))
        return
    if not (arguments.text and arguments.folder and arguments.container):
        parser.error("--text, --folder and --container are needed")
    arguments.prompt = PROMPT
    rows = measure(arguments)
    measured = [row for row in rows if not row.missing]
    print_rows(rows, measured, arguments)
    if arguments.plot:
        draw(measured, arguments.plot, arguments.model)


def print_rows(rows: Sequence[Row], measured: Sequence[Row], arguments: argparse.Namespace) -> None:
    """All rows by KL; a star is on the frontier."""
    from spqt_ti.benchmark.provenance import provenance
    from spqt_ti.tables import Table, print_table

    best = {id(row) for row in frontier(measured)}
    cells = []
    for row in sorted(measured, key=lambda row: row.kl):
        low, high = np.quantile(row.speeds, [0.2, 0.8])
        cells.append([
            row.program, row.weights + (" *" if id(row) in best else ""), f"{row.kl:.4f} ± {row.kl_se:.4f}",
            f"{row.perplexity:.2f}", f"{row.speed:.1f} ± {(high - low) / 2:.1f}",
        ])  # fmt: skip
    cells += [[row.program, row.weights, NOT_MEASURED, "", ""] for row in rows if row.missing]
    print_table(
        Table(["program", "weights", "KL from the source", "perplexity", "tokens/s"], cells),
        f"{arguments.model}: {arguments.tokens} greedy tokens, medians of {arguments.rounds} interleaved rounds ± "
        "(p80 - p20) / 2; * nothing is both faster and nearer",
        f"{arguments.windows} windows of {arguments.context} of {Path(arguments.text).name}, KL ± over windows",
        *comparisons(measured, arguments.kl),
        *reasons({f"{row.program} {row.weights}": row.missing for row in rows if row.missing}),
        provenance(arguments.threads, None, *versions(arguments)),
    )


if __name__ == "__main__":
    main()
