"""What `spqt info` says of a policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from spqt_ti.cli.output import print_json
from spqt_ti.tables import Table, print_table

if TYPE_CHECKING:
    from spqt_ti.sparsity.policy import SparsityPolicy

_FIGURES = ("recall", "precision", "predicted_density", "true_density")


def show(path: Path, as_json: bool) -> None:
    """Print it. PolicyError for a file that is no policy."""
    from spqt_ti.sparsity.policy import SparsityPolicy

    report = describe(SparsityPolicy.load(path))
    if as_json:
        print_json(report)
        return
    layers = report.pop("predictors", [])
    for name, value in report.items():
        print(f"{name + ':':24}{value}")
    if layers:
        titles = ["layer", "rank", *(name.replace("_", " ") for name in _FIGURES)]
        lines = [
            [str(layer["layer"]), str(layer["rank"]), *(f"{layer[n]:.1%}" if n in layer else "" for n in _FIGURES)]
            for layer in layers
        ]
        print_table(Table(titles, lines), "figures on the half of the calibration text that the biases were made from")


def describe(policy: SparsityPolicy) -> dict[str, Any]:
    """Ready for JSON. `predictors`: rank and figures per layer that has one."""
    made_from = {name: value for name, value in policy.calibration.items() if name not in ("layers", "paragraphs")}
    thresholds = policy.thresholds > 0
    report: dict[str, Any] = {
        "method": policy.method, "sparsity": policy.sparsity, "model": policy.model, "layers": len(thresholds),
        "sites with thresholds": int(thresholds.sum()), "sites with weights": len(policy.weights), **made_from,
    }  # fmt: skip
    if policy.predictors:
        figures = policy.calibration.get("layers")
        known = figures if isinstance(figures, list) and len(figures) == len(thresholds) else [{}] * len(thresholds)
        report["executor"] = policy.executor.value
        report["predictors"] = [
            {"layer": layer, "rank": predictor.rank, **{n: known[layer][n] for n in _FIGURES if n in known[layer]}}
            for layer, predictor in sorted(policy.predictors.items())
        ]
    return report
