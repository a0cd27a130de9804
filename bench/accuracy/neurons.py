"""Neuron predictors over sparsity and rank, with the ablations of arXiv 2603.14110; recall over density as a plot.

    python bench/accuracy/texts.py texts
    python bench/accuracy/neurons.py reglu-tiny --text texts/calibration.txt --evaluation texts/speeches.txt \
        --ranks 16,32,64 -o neurons.json --plot docs/plots/neurons.png

Everything is computed on the container's weights in NumPy (spqt_ti/evaluation/neurons.py), so no executor's rounding is
in it. Rows that the results have already, of the same model and texts, are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import spqt_ti
from spqt_ti.cli.options import levels
from spqt_ti.errors import SpqtError
from spqt_ti.evaluation.neurons import NeuronScore, bytes_per_token, score
from spqt_ti.evaluation.perplexity import windows
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.reference import Reference
from spqt_ti.sparsity.methods import svd
from spqt_ti.sparsity.predictors.settings import Bias, Importance, PredictorSettings
from spqt_ti.tables import Table, print_table
from spqt_ti.texts import read_text, sha256


def settings_of(ranks: list[int], ablations: int) -> Iterator[tuple[str, PredictorSettings]]:
    """(name, settings): the paper's choices at every rank, then its ablations at the rank `ablations`."""
    for rank in ranks:
        yield "", PredictorSettings(rank)
    yield "no whitening", PredictorSettings(ablations, whiten=False)
    yield "bias none", PredictorSettings(ablations, bias=Bias.NONE)
    yield "bias global", PredictorSettings(ablations, bias=Bias.GLOBAL)
    yield "importance gate", PredictorSettings(ablations, importance=Importance.GATE)
    yield "importance gate*up", PredictorSettings(ablations, importance=Importance.PRODUCT)


def row(name: str, rank: int, sparsity: float, found: NeuronScore) -> dict[str, Any]:
    """A row of the results."""
    figures = {key: found.mean(key) for key in ("recall", "precision", "predicted_density", "true_density")}
    return {
        "name": name, "rank": rank, "sparsity": sparsity, "perplexity": found.perplexity,
        "kl": float(np.mean(found.kl)), **figures, "layers": found.layers,
    }  # fmt: skip


def bytes_read(row: dict[str, Any], config: ModelConfig) -> float:
    """Of the dense feed-forward networks' bytes, by the sequential executor."""
    up = float(np.mean([layer["predicted_density"] * layer["precision"] for layer in row["layers"]]))
    return bytes_per_token(config, row["rank"], row["predicted_density"], up)


def table(rows: list[dict[str, Any]], dense: float, config: ModelConfig) -> Table:
    """The rows as a table."""
    titles = [
        "rank",
        "s",
        "",
        "perplexity",
        "of dense",
        "KL",
        "recall",
        "precision",
        "predicted",
        "on",
        "FFN bytes read",
    ]
    lines = [
        (
            str(r["rank"]), f"{r['sparsity']:g}", r["name"], f"{r['perplexity']:.3f}",
            f"{r['perplexity'] / dense - 1:+.2%}", f"{r['kl']:.4f}",
            f"{r['recall']:.1%}", f"{r['precision']:.1%}", f"{r['predicted_density']:.1%}",
            f"{r['true_density']:.1%}", f"{bytes_read(r, config):.1%}",
        )
        for r in sorted(rows, key=lambda r: (r["name"], r["rank"], r["sparsity"]))
    ]  # fmt: skip
    return Table(titles, lines)


def layers_table(row: dict[str, Any]) -> Table:
    """The layers of one row."""
    titles = ["layer", "recall", "precision", "predicted", "on"]
    names = ("recall", "precision", "predicted_density", "true_density")
    return Table(titles, [(str(i), *(f"{layer[n]:.1%}" for n in names)) for i, layer in enumerate(row["layers"])])


def draw(rows: list[dict[str, Any]], model: str, path: Path) -> None:
    """Recall over predicted density, a line per rank; ablations as single points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis: Any = figure.add_subplot(xlabel="predicted density", ylabel="recall")
    for name, rank in dict.fromkeys((r["name"], r["rank"]) for r in rows):
        line = [r for r in rows if (r["name"], r["rank"]) == (name, rank)]
        style = {"marker": "o"} if not name else {"marker": "x", "linestyle": ":"}
        x, y = ([r[key] for r in line] for key in ("predicted_density", "recall"))
        axis.plot(x, y, label=f"rank {rank}{', ' if name else ''}{name}", **style)
    axis.axvline(rows[0]["true_density"], color="grey", linewidth=0.8)
    axis.annotate("true density", (rows[0]["true_density"], axis.get_ylim()[0]), rotation=90, fontsize="x-small")
    axis.set_title(f"{model}: neurons that were on and were predicted, on held-out text")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="x-small")
    figure.savefig(path, dpi=110)


def run(arguments: argparse.Namespace) -> None:
    """What `main` has parsed."""
    model = spqt_ti.load(arguments.model, threads=arguments.threads)
    text, evaluation = read_text(arguments.text), read_text(arguments.evaluation)
    header = {
        "model": model.container.fingerprint, "text": sha256(text), "evaluation": sha256(evaluation),
        "tokens": arguments.tokens, "context": arguments.context, "windows": arguments.windows,
    }  # fmt: skip
    results: dict[str, Any] = {"header": header, "rows": []}
    if arguments.output.exists():
        results = json.loads(arguments.output.read_text(encoding="utf-8"))
        if results["header"] != header:
            sys.exit(f"{arguments.output} holds results of {results['header']}; name another file")
    ids = model.tokenizer.encode(text)[: arguments.tokens]
    parts = windows(model.tokenizer.encode(evaluation), arguments.context, arguments.windows, model.tokenizer.bos)
    reference = Reference(model.container.config, dict(model.container.weights()))
    dense, logs = score(reference, parts, None, {})
    rows = results["rows"]
    done = {(r["name"], r["rank"], r["sparsity"]) for r in rows}
    for name, settings in settings_of(arguments.ranks, arguments.ablations or arguments.ranks[-1]):
        wanted = [s for s in arguments.sparsity if (name, settings.rank, s) not in done]
        wanted = wanted[:1] if settings.bias is Bias.NONE else wanted  # no target
        if not wanted:
            continue
        calibration = svd.calibrate(model.container, text, ids, settings, threads=model.llama.threads)
        for s in wanted:
            found, _ = score(reference, parts, logs, calibration.policy(s).predictors)
            rows.append(row(name, settings.rank or 0, s, found))
            arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    note = f"{arguments.model}: {len(parts)} windows of {arguments.context} of {arguments.evaluation.name}, "
    print_table(table(rows, dense.perplexity, model.container.config), f"{note}dense perplexity {dense.perplexity:.3f}")
    plain = [r for r in rows if not r["name"]]
    print_table(layers_table(plain[-1]), f"layers at rank {plain[-1]['rank']}, s = {plain[-1]['sparsity']:g}")
    if arguments.plot:
        draw(rows, arguments.model, arguments.plot)


def main() -> None:
    """Calibrate and score what is missing, write the results, print the tables, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name, Hugging Face directory or quantised directory")
    parser.add_argument("--text", type=Path, required=True, help="to calibrate on")
    parser.add_argument("--tokens", type=int, default=20000, help="of it (default: %(default)s)")
    parser.add_argument("--evaluation", type=Path, required=True, help="text to evaluate on")
    parser.add_argument("--sparsity", type=levels, default=[0.4, 0.5, 0.6, 0.7])
    parser.add_argument("--ranks", type=lambda text: [int(rank) for rank in text.split(",")], default=[16, 32, 64])
    parser.add_argument("--ablations", type=int, metavar="RANK", help="rank of the ablations (default: the last)")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, required=True, help="results, as JSON")
    parser.add_argument("--plot", type=Path, help="recall over density, a PNG (needs matplotlib)")
    try:
        run(parser.parse_args())
    except SpqtError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
