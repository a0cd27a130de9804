"""Draw what tables.py has measured: budgets per layer, and perplexity over decode speed (needs matplotlib).

    spqt bench decode smollm2-135m --sparsity 0 --policy policies/uniform-0.25.json ... --json > speeds.json
    python bench/accuracy/plots.py results.json --speeds speeds.json --folder docs/plots

Speeds belong to a method and a level as perplexities do; a point needs both.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from spqt_ti.model.sites import SITES


def draw_budgets(rows: list[dict[str, Any]], level: float, path: Path) -> None:
    """Share of the weights skipped per layer, an axis per site, a line per method."""
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for place, (axis, site) in enumerate(zip(axes.flat, SITES, strict=True)):
        for row in rows:
            if row["sparsity"] == level:
                axis.plot([layer[place] for layer in row["skipped"]], marker=".", label=row["method"])
        axis.set(title=f"before {site}", xlabel="layer", ylabel="skipped")
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize="small")
    figure.suptitle(f"Inputs skipped per layer and site at {level:.0%}, on the evaluation text")
    figure.savefig(path, dpi=110)


def draw_curve(rows: list[dict[str, Any]], speeds: list[dict[str, Any]], model: str, path: Path) -> None:
    """Perplexity over tokens per second, a line per method from the dense model on."""
    measured = {(row["method"], row["sparsity"]): row for row in speeds}
    dense = next(row for row in rows if row["method"] == "dense")
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis: Any = figure.add_subplot(xlabel="tokens per second (from 0)", ylabel="perplexity", yscale="log")
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != "dense"):
        line = [dense] + [row for row in rows if row["method"] == method]
        points = [(measured[key], row) for row in line if (key := (row["method"], row["sparsity"])) in measured]
        if len(points) < 2:
            continue
        axis.errorbar(
            [speed["tokens_per_second"] for speed, _ in points],
            [row["perplexity"] for _, row in points],
            [row["perplexity_se"] for _, row in points],
            [speed["spread"] for speed, _ in points],
            marker="o", capsize=2, label=method,
        )  # fmt: skip
        for speed, row in points[1:]:
            at = (speed["tokens_per_second"], row["perplexity"])
            axis.annotate(f"{row['sparsity']:.0%}", at, (4, -10), textcoords="offset points", fontsize="x-small")
    axis.set_xlim(left=0)
    axis.set_title(f"{model}, {speeds[0]['threads']} threads")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Read the results, draw into the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="from tables.py")
    parser.add_argument("--speeds", type=Path, help="from spqt bench decode --json, for the curve")
    parser.add_argument("--level", type=float, default=0.5, help="of the budgets (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path())
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = json.loads(arguments.results.read_text(encoding="utf-8"))
    draw_budgets(results["rows"], arguments.level, arguments.folder / "budgets.png")
    if arguments.speeds:
        speeds = json.loads(arguments.speeds.read_text(encoding="utf-8"))
        draw_curve(results["rows"], speeds, results["model"], arguments.folder / "perplexity-speed.png")


if __name__ == "__main__":
    main()
