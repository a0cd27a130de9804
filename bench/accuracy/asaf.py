"""Plans of ASAF against one rate for all layers, at equal memory: size, quality, speed, beside llama.cpp.

    spqt allocate smollm2-135m --text calibration.txt --alpha 0 --delta-max 0.05 -o plan-0.05.json
    python bench/accuracy/asaf.py smollm2-135m --calibration calibration.txt --text evaluation.txt --text speeches.txt \
        --plan plan-0.05.json --rate 0.0625 --folder asaf
    python bench/accuracy/asaf.py ... --rounds 9    # times prefill and decoding as well: on a quiet machine

Every plan and rate is quantised (Q4_K, rounded to the nearest) in every --mode of pruning, and those of --gptq by GPTQ
in the first of them; containers and scores are kept in the folder, so the same command goes on where it was. KL is from
the source in f32. Perplexities rise over the model that is not pruned and quantised in the same way, paired by window;
± are standard errors over windows. Peers (--types) are timed in the same rounds (bench/peers/).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # its neighbours, and the peers
sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
from curve import check_folder, scores_of_container
from processes import ask, peer_version, requantised, server
from programs import LLAMA_CPP

from spqt_ti.api import Model, load
from spqt_ti.benchmark.decode import PROMPT, decode_once
from spqt_ti.benchmark.provenance import provenance
from spqt_ti.cli.execution import add_execution
from spqt_ti.cli.options import levels
from spqt_ti.cli.output import print_log
from spqt_ti.container import Container
from spqt_ti.convert.plan import PruningPlan
from spqt_ti.convert.prune import MODES
from spqt_ti.errors import SpqtError
from spqt_ti.evaluation.float_model import FloatModel
from spqt_ti.evaluation.perplexity import Scorer, windows
from spqt_ti.evaluation.studies import WindowScores, write_reference
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.progress import progress
from spqt_ti.quantization import quantize_calibrated
from spqt_ti.sources import registry
from spqt_ti.sources.open import open_checkpoint
from spqt_ti.tables import Table, print_table
from spqt_ti.texts import check_disjoint, paragraph_hashes, read_text, sha256

UNPRUNED = "unpruned"
TOKENS = 64  # decoded in a round


@dataclass(frozen=True)
class Case:
    """A model to make: a plan's (None: not pruned), in a mode of pruning, by a method of quantisation."""

    name: str
    plan: PruningPlan | None
    mode: str
    method: str

    @property
    def folder(self) -> str:
        """Name of the container."""
        return "-".join([self.name, *([self.mode] if self.plan else []), self.method])


def cases_of(arguments: argparse.Namespace, layers: int) -> list[Case]:
    """The unpruned model first, then plans, then rates; then those of --gptq by GPTQ, in the first mode."""
    plans = {Path(path).stem: PruningPlan.load(path) for path in arguments.plan}
    plans |= {f"uniform-{rate:g}": PruningPlan((rate,) * layers) for rate in arguments.rate}
    modes = arguments.mode or MODES[:2]
    if unknown := set(arguments.gptq) - set(plans):
        raise SystemExit(f"--gptq {min(unknown)}: there are {', '.join(plans)}")
    found = [Case(UNPRUNED, None, "", "rtn")]
    found += [Case(name, plan, mode, "rtn") for name, plan in plans.items() for mode in modes]
    if arguments.gptq:
        found.append(Case(UNPRUNED, None, "", "gptq"))
        found += [Case(name, plans[name], modes[0], "gptq") for name in arguments.gptq]
    return found


def made(arguments: argparse.Namespace, source: Path, case: Case, text: str) -> Container:
    """The case's container, from the folder if it is there."""
    path = arguments.folder / case.folder
    if (path / "spqt.json").is_file():
        return Container.open(path)
    return quantize_calibrated(
        source, path, method=case.method, text=text, plan=case.plan, pruning=case.mode or MODES[0]
    )


def removed_share(container: Container, whole: int) -> float:
    """Of the FFN's channels. `whole`: channels of a layer of the source."""
    widths = container.config.widths()
    return 1 - sum(widths) / (whole * len(widths))


@dataclass(frozen=True)
class Quality:
    """On one text. `rise`: relative, of the perplexity over the unpruned model of the same method; `kl`: nats."""

    perplexity: float
    rise: float
    rise_se: float
    kl: float
    kl_se: float

    @classmethod
    def of(cls, scores: WindowScores, unpruned: WindowScores) -> Quality:
        """Paired by window."""
        change, change_se = mean_and_error(scores.nll - unpruned.nll)
        kl, kl_se = mean_and_error(scores.kl)
        rise = float(np.expm1(change))
        return cls(scores.perplexity, rise, (1 + rise) * change_se, kl, kl_se)


@dataclass(frozen=True)
class Row:
    """A line of the table. `removed`: of the FFN's channels; speeds in tokens/s, None where they were not measured."""

    name: str
    removed: float
    file_bytes: int
    bytes_per_token: float | None
    quality: tuple[Quality, ...]
    prefill: float | None = None
    decode: float | None = None


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard error of values of windows."""
    return float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0


def file_bytes(path: Path) -> int:
    """Of a file, or of a directory's files."""
    return sum(one.stat().st_size for one in path.iterdir()) if path.is_dir() else path.stat().st_size


def own_runs(model: Model, prompt: int) -> dict[str, Callable[[], float]]:
    """What a round measures of a model: test -> tokens/s of one run."""
    ids = model.tokenizer.encode(PROMPT)
    long = (ids * (prompt // len(ids) + 1))[:prompt]

    def prefill() -> float:
        model.llama.reset()
        begin = time.perf_counter()
        model.llama.prefill(long)
        return prompt / (time.perf_counter() - begin)

    model.llama.warm_up_prefill()
    model.llama.warm_up_decode()
    return {"prefill": prefill, "decode": lambda: decode_once(model, ids, TOKENS)[0]}


def timed(runs: dict[str, dict[str, Callable[[], float]]], rounds: int) -> dict[str, dict[str, float]]:
    """Name -> test -> median tokens/s over rounds in which everything has its turn, in another order each time."""
    found: dict[str, dict[str, list[float]]] = {name: {test: [] for test in tests} for name, tests in runs.items()}
    order, rng = list(runs), np.random.default_rng(0)
    with progress(total=rounds * len(runs), desc="speed", unit="runs") as bar:
        for number in range(rounds + 1):  # the first one warms up
            for name in rng.permutation(order):
                for test, run in runs[name].items():
                    speed = run()
                    if number:
                        found[name][test].append(speed)
                if number:
                    bar.update()
    return {name: {test: float(np.median(v)) for test, v in tests.items()} for name, tests in found.items()}


def speeds(
    arguments: argparse.Namespace, source: Path, containers: dict[str, Container]
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Of our models and of the peer's types; and the sizes of the peer's files."""
    with ExitStack() as stack:
        peer = LLAMA_CPP.of(arguments.peer_python)
        (arguments.folder / "peers").mkdir(exist_ok=True)
        sizes, runs = {}, {}
        for scheme in filter(None, arguments.types.split(",")):
            path = requantised(peer, source, scheme, arguments.folder / "peers")
            command = [peer.python, "-c", peer.speed, str(path), str(arguments.threads), str(TOKENS), PROMPT]
            process = stack.enter_context(server(command))
            name = f"{peer.name} {scheme}"
            sizes[name] = file_bytes(path)
            runs[name] = {
                "prefill": lambda process=process: ask(process, f"prefill {arguments.prompt}")[0],
                "decode": lambda process=process: ask(process, "decode")[0],
            }
        for name, container in containers.items():
            runs[name] = own_runs(load(container, threads=arguments.threads), arguments.prompt)
        return timed(runs, arguments.rounds), sizes


def qualities(
    arguments: argparse.Namespace, path: Path, source: Path, cases: Sequence[Case], containers: Sequence[Container]
) -> tuple[list[Quality], list[WindowScores]]:
    """Of every case on one text."""
    text = read_text(path)
    checkpoint = open_checkpoint(source)
    tokenizer = Tokenizer(checkpoint.tokenizer_json, checkpoint.config)
    parts = windows(tokenizer.encode(text), arguments.context, arguments.windows, tokenizer.bos)
    folder = arguments.folder / path.stem
    check_folder(folder, {"text_sha256": sha256(text), "context": arguments.context, "windows": len(parts)})

    def scorer() -> Scorer:
        return FloatModel(checkpoint.config, {n: checkpoint.read(n) for n in checkpoint.names()}).second_half

    write_reference(folder / "reference", parts, scorer)
    scores = [
        scores_of_container(arguments, folder, container, [None], parts, case.folder)[0]
        for case, container in zip(cases, containers, strict=True)
    ]
    unpruned = {
        case.method: score for case, score in zip(cases, scores, strict=True) if case.plan is None
    }  # fmt: skip
    found = [Quality.of(score, unpruned[case.method]) for case, score in zip(cases, scores, strict=True)]
    return found, scores


def against_uniform(cases: Sequence[Case], removed: Sequence[float], scores: Sequence[WindowScores]) -> list[str]:
    """Each plan of many rates beside the one rate that removes nearly as much: KL paired by window."""
    found = []
    for case, share, score in zip(cases, removed, scores, strict=True):
        if case.plan is None or len(set(case.plan.rates)) == 1:
            continue
        rivals = [
            (abs(other_share - share), other, other_share, other_score)
            for other, other_share, other_score in zip(cases, removed, scores, strict=True)
            if other.plan and len(set(other.plan.rates)) == 1 and (other.mode, other.method) == (case.mode, case.method)
        ]
        if not rivals:
            continue
        _, other, other_share, other_score = min(rivals, key=lambda rival: rival[0])
        change, error = mean_and_error(score.kl - other_score.kl)
        found.append(
            f"{case.folder} ({share:.2%} of the FFN) over {other.folder} ({other_share:.2%}): KL {change:+.4f} ± "
            f"{error:.4f}"
        )
    return found


def table(rows: Sequence[Row], texts: Sequence[str], prompt: int) -> Table:
    """All rows."""
    titles = ["model", "FFN removed", "file, MB", "MB per token"]
    for text in texts:
        titles += [f"{text}: perplexity", "over unpruned", "KL from the source"]
    timed_rows = any(row.prefill for row in rows)
    titles += [f"prefill of {prompt}, tokens/s", "decode, tokens/s"] if timed_rows else []
    lines = []
    for row in rows:
        read = "" if row.bytes_per_token is None else f"{row.bytes_per_token / 1e6:.1f}"
        line = [row.name, f"{row.removed:.2%}" if row.quality else "", f"{row.file_bytes / 1e6:.1f}", read]
        for q in row.quality:
            rise = f"{q.rise:+.2%} ± {q.rise_se:.2%}" if q.rise or q.rise_se else ""
            line += [f"{q.perplexity:.2f}", rise, f"{q.kl:.4f} ± {q.kl_se:.4f}"]
        line += [] if row.quality else [""] * (3 * len(texts))
        line += [f"{speed:.0f}" if speed else "" for speed in (row.prefill, row.decode)] if timed_rows else []
        lines.append(line)
    return Table(titles, lines)


def measure(arguments: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """The rows, and what plans are worth beside uniform rates."""
    source, calibration = registry.resolve(arguments.model), read_text(arguments.calibration)
    said = {"text_sha256": sha256(calibration), "paragraphs": paragraph_hashes(calibration)}
    config = open_checkpoint(source).config
    cases = cases_of(arguments, config.num_hidden_layers)
    for path in arguments.text:  # before any work
        check_disjoint(read_text(path), said, "channels are chosen with")
        for case in cases:
            check_disjoint(read_text(path), case.plan.details.get("calibration", {}) if case.plan else {})
    containers = [made(arguments, source, case, calibration) for case in cases]
    removed = [removed_share(container, config.intermediate_size) for container in containers]
    quality: list[list[Quality]] = [[] for _ in cases]
    read, notes = [0.0] * len(cases), []
    for path in map(Path, arguments.text):
        found, scores = qualities(arguments, path, source, cases, containers)
        for one, of_text in zip(quality, found, strict=True):
            one.append(of_text)
        read = [score.bytes_per_token for score in scores]
        notes += [f"{path.stem}: {line}" for line in against_uniform(cases, removed, scores)]
    speed: dict[str, dict[str, float]] = {}
    sizes: dict[str, int] = {}
    if arguments.rounds:
        speed, sizes = speeds(arguments, source, {case.folder: c for case, c in zip(cases, containers, strict=True)})
    rows = [
        Row(case.folder, share, file_bytes(container.path), bytes_read, tuple(q), **speed.get(case.folder, {}))
        for case, container, share, bytes_read, q in zip(cases, containers, removed, read, quality, strict=True)
    ]
    return rows + [Row(name, 0.0, size, None, (), **speed[name]) for name, size in sizes.items()], notes


def main() -> None:
    """Make, score, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name or .gguf file")
    parser.add_argument("--calibration", required=True, metavar="FILE", help="text for pruning and GPTQ")
    parser.add_argument("--text", action="append", required=True, metavar="FILE", help="to evaluate on; repeatable")
    parser.add_argument("--plan", action="append", default=[], metavar="FILE", help="of spqt allocate; repeatable")
    parser.add_argument("--rate", type=levels, default=[], metavar="R[,R...]", help="of all layers")
    parser.add_argument("--mode", action="append", choices=MODES, help=f"repeatable (default: {MODES[0]}, {MODES[1]})")
    parser.add_argument(
        "--gptq",
        action="append",
        default=[],
        metavar="NAME",
        help="GPTQ as well: plan-0.05, uniform-0.0625; repeatable",
    )
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=0, help="of prefill and decoding (default: not timed)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of prefill (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of speeds (default: %(default)s)")
    parser.add_argument("--types", default="F16,Q4_K_M", help="llama.cpp's (default: %(default)s; '': none)")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--folder", type=Path, required=True)
    add_execution(parser)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print_log()
    try:
        rows, notes = measure(arguments)
    except SpqtError as error:
        raise SystemExit(f"error: {error}") from error
    texts = [Path(path).stem for path in arguments.text]
    notes += [f"{arguments.windows} windows of {arguments.context}", provenance(arguments.threads)]
    if arguments.rounds and arguments.types:
        notes.append(f"medians of {arguments.rounds} rounds; {peer_version(LLAMA_CPP.of(arguments.peer_python))}")
    print_table(table(rows, texts, arguments.prompt), *notes)
    found: dict[str, Any] = {"model": arguments.model, "notes": notes, "rows": [asdict(row) for row in rows]}
    (arguments.folder / "asaf.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
