"""KL from the source against bytes read per token, and against tokens/s: dense widths beside sparse ones, on one plot.

    python bench/accuracy/texts.py texts
    python bench/accuracy/curve.py smollm2-135m --calibration texts/calibration.txt --text texts/evaluation.txt \
        --storage q3_k --storage q4_k --container made/q3_k-gptq --container made/q4_k-gptq --sparse q4_k --folder curve
    python bench/accuracy/curve.py ... --speed 5        # times decoding as well: on a machine with nothing else to do

Containers that --storage names are made in the folder (rounded to the nearest); others are given, and say themselves
how they were made. Those of --sparse (a scheme: all its containers) also run with TEAL policies at --levels. All of it
is kept in the folder: interrupted, or with more containers, the same command goes on. It writes curve.json (for `spqt
recommend --curve`) and curve.png there, and prints the table and what 3 bits dense are worth against sparse 4 bits.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spqt_ti.api import load
from spqt_ti.benchmark.decode import PROMPT, decode_once
from spqt_ti.benchmark.provenance import provenance
from spqt_ti.cli.execution import add_execution, executor_of
from spqt_ti.cli.main import main as spqt
from spqt_ti.cli.options import levels
from spqt_ti.cli.output import print_log
from spqt_ti.container import Container
from spqt_ti.convert.quantize import quantize
from spqt_ti.errors import SpqtError
from spqt_ti.evaluation.curve import Curve, Point, frontier, kl_at_bytes
from spqt_ti.evaluation.float_model import FloatModel
from spqt_ti.evaluation.perplexity import Scorer, windows
from spqt_ti.evaluation.studies import TEXT_SCORES, WindowScores, policy_item, write_reference
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.model.sites import Site
from spqt_ti.parallel.study import ModelReference, Request
from spqt_ti.parallel.sweep import sweep
from spqt_ti.progress import progress
from spqt_ti.sources import registry
from spqt_ti.sources.open import open_checkpoint
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.tables import Table, print_table
from spqt_ti.texts import check_disjoint, read_text, sha256

METHOD = "teal"


@dataclasses.dataclass(frozen=True)
class Case:
    """A container and a policy file, or None for a dense run."""

    container: Container
    policy: Path | None = None


def scheme_of(container: Container) -> str:
    """That of the sites; of several schemes, joined."""
    return "+".join(dict.fromkeys(container.matrix(0, site).scheme.name.lower() for site in Site))


def quantizer_of(container: Container) -> str:
    """ "gptq" or "rtn", and what else was done to the weights."""
    kinds = [str(t["kind"]) for t in container.transformations]
    return "+".join([*(kind for kind in kinds if kind != "gptq"), "gptq" if "gptq" in kinds else "rtn"])


def containers_of(arguments: argparse.Namespace, source: Path) -> list[Container]:
    """Those to make, which are made, and those given."""
    found = []
    for storage in arguments.storage:
        folder = arguments.folder / storage.replace(",", "-").replace("=", "-")
        made = (folder / "spqt.json").is_file()
        found.append(Container.open(folder) if made else quantize(source, folder, scheme=storage))
    return found + [Container.open(path) for path in arguments.container]


def policies_of(arguments: argparse.Namespace, container: Container) -> list[Path]:
    """TEAL's policies at all levels, made where they are not there yet."""
    folder = arguments.folder / "policies" / container.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{METHOD}-{level:g}.json" for level in arguments.levels]
    missing = [level for level, path in zip(arguments.levels, paths, strict=True) if not path.exists()]
    if missing:
        # A single level is not put into the name of its file by the command.
        output = folder / (f"{METHOD}-{missing[0]:g}.json" if len(missing) == 1 else f"{METHOD}.json")
        code = spqt([
            "calibrate", str(container.path), "--method", METHOD, "--sparsity", ",".join(f"{s:g}" for s in missing),
            "--text", str(arguments.calibration), "-o", str(output), *(["--quick"] if arguments.quick else []),
            "--tokens", str(arguments.tokens),
        ])  # fmt: skip
        if code:
            raise SystemExit(code)
    return paths


def scores_of(
    arguments: argparse.Namespace, container: Container, cases: Sequence[Case], parts: Sequence[Sequence[int]]
) -> list[WindowScores]:
    """Of the cases of one container, against the source's reference in the folder."""
    items = [None if case.policy is None else policy_item(case.policy) for case in cases]
    title = f"{scheme_of(container)} {quantizer_of(container)}"
    return scores_of_container(arguments, arguments.folder, container, items, parts, title)


def scores_of_container(
    arguments: argparse.Namespace, folder: Path, container: Container, items: Sequence[Any],
    parts: Sequence[Sequence[int]], title: str,
) -> list[WindowScores]:  # fmt: skip
    """Of `items` (see TextScores) against the reference in `folder`, where scores are kept, too."""
    settings = {
        "windows": [list(map(int, part)) for part in parts], "threads": 1,
        "reference": str((folder / "reference").absolute()),
    }  # fmt: skip
    request = Request(TEXT_SCORES, ModelReference.of(container, arguments.shared), settings)
    kept = folder / "scores" / f"{request.key}.json"
    with executor_of(arguments, container) as executor:
        results = sweep(executor, request, items, kept, title)
    return [WindowScores.of(result) for result in results]


def point_of(case: Case, scores: WindowScores) -> Point:
    """A point without a speed."""
    policy = None if case.policy is None else SparsityPolicy.load(case.policy)
    error = float(scores.kl.std(ddof=1) / len(scores.kl) ** 0.5) if len(scores.kl) > 1 else 0.0
    return Point(
        scheme_of(case.container), quantizer_of(case.container), policy.method if policy else "",
        policy.sparsity if policy else 0.0, scores.realised_sparsity, scores.bytes_per_token, float(scores.kl.mean()),
        error, scores.perplexity, float(scores.same.mean()),
    )  # fmt: skip


def timed(cases: Sequence[Case], points: Sequence[Point], rounds: int, threads: int | None, tokens: int) -> list[Point]:
    """The points with tokens/s: medians over rounds in which every case has its turn."""
    models = {case.container.path: load(case.container, threads=threads) for case in cases}
    policies = [None if case.policy is None else SparsityPolicy.load(case.policy) for case in cases]
    speeds: list[list[float]] = [[] for _ in cases]
    for model in models.values():
        model.llama.warm_up_prefill()
        model.llama.warm_up_decode()
    with progress(total=rounds * len(cases), desc="decode", unit="runs") as bar:
        for _ in range(rounds):
            for case, policy, speed in zip(cases, policies, speeds, strict=True):
                model = models[case.container.path]
                model.apply(policy)
                speed.append(decode_once(model, model.tokenizer.encode(PROMPT), tokens)[0])
                bar.update()
    return [
        dataclasses.replace(point, tokens_per_second=float(np.median(speed)))
        for point, speed in zip(points, speeds, strict=True)
    ]


def table(curve: Curve) -> Table:
    """All points by bytes; a star is on the frontier."""
    best = {id(point) for point in frontier(curve.points)}
    titles = ["stored and run", "weights skipped", "MB per token", "KL from the source", "perplexity", "same top 1"]
    timed = any(point.tokens_per_second for point in curve.points)
    lines = [
        [
            f"{point.name}{' *' if id(point) in best else ''}", f"{point.realised_sparsity:.1%}",
            f"{point.bytes_per_token / 1e6:.1f}", f"{point.kl:.4f} ± {point.kl_se:.4f}", f"{point.perplexity:.2f}",
            f"{point.same_top1:.1%}", *([f"{point.tokens_per_second or 0:.1f}"] if timed else []),
        ]
        for point in sorted(curve.points, key=lambda p: p.bytes_per_token)
    ]  # fmt: skip
    return Table([*titles, *(["tokens/s"] if timed else [])], lines)


def answers(curve: Curve) -> list[str]:
    """For every dense container: what sparse ones of more bits have at its bytes."""
    dense = [point for point in curve.points if not point.sparse_method]
    found = []
    for point in sorted(dense, key=lambda p: p.bytes_per_token):
        for whole in dense:
            if whole.bytes_per_token <= point.bytes_per_token or whole.quantizer != point.quantizer:
                continue
            line = [whole, *sparse_of(curve, whole)]
            there = kl_at_bytes(line, point.bytes_per_token)
            if there is not None:
                found.append(
                    f"at {point.bytes_per_token / 1e6:.1f} MB per token: {point.name} dense has KL {point.kl:.4f}, "
                    f"{whole.name} with {METHOD} {there:.4f}: {'dense' if point.kl < there else 'sparse'} is better"
                )
    return found


def sparse_of(curve: Curve, whole: Point) -> list[Point]:
    """Points of the same container with policies."""
    return [p for p in curve.points if p.sparse_method and (p.scheme, p.quantizer) == (whole.scheme, whole.quantizer)]


def draw(curve: Curve, path: Path) -> None:
    """KL over bytes, and over tokens/s where they were measured (needs matplotlib)."""
    from matplotlib.figure import Figure

    timed = any(point.tokens_per_second for point in curve.points)
    figure = Figure(figsize=(11 if timed else 7, 5), layout="constrained")
    axes: Any = figure.subplots(1, 2 if timed else 1, squeeze=False)[0]
    kinds = [("bytes_per_token", 1e-6, "MB per token")] + ([("tokens_per_second", 1, "tokens/s")] if timed else [])
    for axis, (name, unit, label) in zip(axes, kinds, strict=True):
        for quantizer in dict.fromkeys(point.quantizer for point in curve.points):
            dense = [p for p in curve.points if not p.sparse_method and p.quantizer == quantizer]
            lines = [(f"dense {quantizer}", "-", dense)]
            lines += [(f"{w.name}, {METHOD}", "--", [w, *more]) for w in dense if (more := sparse_of(curve, w))]
            for title, style, points in lines:
                ordered = sorted((p for p in points if getattr(p, name)), key=lambda p: getattr(p, name))
                xs, ys = [getattr(p, name) * unit for p in ordered], [p.kl for p in ordered]
                axis.errorbar(
                    xs,
                    ys,
                    [p.kl_se for p in ordered],
                    linestyle=style,
                    marker="o",
                    markersize=4,
                    capsize=2,
                    label=title,
                )
                for x, y, p in zip(xs, ys, ordered, strict=True):
                    mark = f"{p.level:.0%}" if p.sparse_method else p.scheme
                    axis.annotate(mark, (x, y), (4, 4), textcoords="offset points", fontsize="x-small")
        axis.set(xlabel=label, ylabel="KL from the source, nats", yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize="small")
    figure.suptitle(f"{curve.model}: what quality costs")
    figure.savefig(path, dpi=110)


def measure(arguments: argparse.Namespace) -> Curve:
    """Everything that is not in the folder yet."""
    text, source = read_text(arguments.text), registry.resolve(arguments.model)
    check_disjoint(text, {"text_sha256": sha256(read_text(arguments.calibration))})
    containers = containers_of(arguments, source)
    for container in containers:
        for transformation in container.transformations:
            check_disjoint(text, transformation, f"{container.path} was quantised with")
    checkpoint = open_checkpoint(source)
    tokenizer = Tokenizer(checkpoint.tokenizer_json, checkpoint.config)
    parts = windows(tokenizer.encode(text), arguments.context, arguments.windows, tokenizer.bos)
    about = {
        "text_sha256": sha256(text), "context": arguments.context, "windows": len(parts),
        "calibration_tokens": arguments.tokens, "quick": arguments.quick,
    }  # fmt: skip
    check_folder(arguments.folder, {**about, "source": sorted({str(c.source.sha256) for c in containers})})

    def scorer() -> Scorer:
        weights = {name: checkpoint.read(name) for name in checkpoint.names()}
        return FloatModel(checkpoint.config, weights).second_half

    write_reference(arguments.folder / "reference", parts, scorer)
    cases, points = [], []
    for container in containers:
        paths = policies_of(arguments, container) if scheme_of(container) in arguments.sparse else []
        own = [Case(container), *(Case(container, path) for path in paths)]
        cases += own
        points += [point_of(*pair) for pair in zip(own, scores_of(arguments, container, own, parts), strict=True)]
    if arguments.speed:
        points = timed(cases, points, arguments.speed, arguments.threads, 64)
        about |= {"threads": arguments.threads, "rounds": arguments.speed}
    about["provenance"] = provenance(arguments.threads)
    return Curve(arguments.model, str(containers[0].source.sha256), tuple(points), about)


def check_folder(folder: Path, header: dict[str, Any]) -> None:
    """Exit where the folder holds measurements of another text or model."""
    path = folder / "of.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(header, indent=2), encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != header:
        raise SystemExit(f"{folder} holds measurements of {found}, this run is {header}; name another folder")


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name, Hugging Face directory or .gguf file")
    parser.add_argument("--calibration", required=True, metavar="FILE", help="text for the policies")
    parser.add_argument("--text", required=True, metavar="FILE", help="text to evaluate on")
    parser.add_argument("--storage", action="append", default=[], metavar="SCHEME", help="make it, rounded to nearest")
    parser.add_argument("--container", action="append", default=[], metavar="DIR", help="quantised already")
    parser.add_argument("--sparse", action="append", default=[], metavar="SCHEME", help="run with policies as well")
    parser.add_argument("--levels", type=levels, default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.65], metavar="S,S,...")
    parser.add_argument("--tokens", type=int, default=20000, help="of the calibration (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="rough policies, in a tenth of the time")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--speed", type=int, default=0, metavar="ROUNDS", help="time decoding too")
    parser.add_argument("--threads", type=int, help="of decoding (default: all)")
    parser.add_argument("--folder", type=Path, required=True)
    add_execution(parser)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print_log()
    try:
        curve = measure(arguments)
    except SpqtError as error:
        raise SystemExit(f"error: {error}") from error
    (arguments.folder / "curve.json").write_text(curve.to_json(), encoding="utf-8")
    print_table(table(curve), f"{curve.model}: KL ± over windows; * nothing has fewer bytes and less KL")
    print("\n".join(answers(curve)))
    draw(curve, arguments.folder / "curve.png")


if __name__ == "__main__":
    main()
