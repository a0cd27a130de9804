"""`spqt policy`: what policies say, how two differ, and a picture of them; `spqt info` shows them as well."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spqt_ti.cli import options
from spqt_ti.cli.output import print_json
from spqt_ti.cli.signals import held_back
from spqt_ti.tables import Table, print_table

if TYPE_CHECKING:
    from spqt_ti.sparsity.policy import SparsityPolicy

_FIGURES = ("recall", "precision", "predicted_density", "true_density")
_POLICY = "policy file, one that comes along (smollm2-135m:0.5), or org/name/file.json[@revision] on the hub"


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "policy",
        help="show, compare or draw sparsity policies",
        description="What policies say. Without a command: the policies that come along.",
    )
    parser.set_defaults(run=_list, json=False)
    actions = parser.add_subparsers(title="commands", metavar="COMMAND")
    showing = actions.add_parser("show", help="method, level, origin, and thresholds of every layer")
    showing.add_argument("policy", metavar="POLICY", help=_POLICY)
    options.add_json(showing)
    showing.set_defaults(run=lambda arguments: show(arguments.policy, arguments.json, thresholds=True))
    comparing = actions.add_parser("diff", help="what differs between two policies")
    comparing.add_argument("first", metavar="POLICY", help=_POLICY)
    comparing.add_argument("second", metavar="POLICY", help="another one")
    options.add_json(comparing)
    comparing.set_defaults(run=_diff)
    drawing = actions.add_parser("plot", help="draw thresholds by layer (needs matplotlib)")
    drawing.add_argument("policies", metavar="POLICY", nargs="+", help=_POLICY)
    drawing.add_argument("-o", "--output", required=True, metavar="FILE.png", help="picture to write")
    drawing.set_defaults(run=_plot)


def _list(arguments: argparse.Namespace) -> None:
    with held_back():
        from spqt_ti.sparsity.shared_policies import find_policy, shipped
    found = [(name, find_policy(path)) for name, path in shipped().items()]
    rows = [[name, policy.method, f"{policy.sparsity:.0%}", policy.model] for name, policy in found]
    print_table(Table(["policy", "method", "level", "model"], rows))


def show(name: str | Path, as_json: bool, thresholds: bool = False) -> None:
    """Print a policy, with its `thresholds` if asked. PolicyError for a file that is no policy."""
    from spqt_ti.model.sites import SITES
    from spqt_ti.sparsity.shared_policies import find_policy

    policy = find_policy(name)
    report = describe(policy)
    rows = [[float(value) for value in row] for row in policy.thresholds]
    if as_json:
        print_json(report | {"sites": list(SITES), "thresholds": rows} if thresholds else report)
        return
    layers = report.pop("predictors", [])
    for key, value in report.items():
        print(f"{key + ':':24}{value}")
    if thresholds:
        lines = [[str(layer), *(f"{value:.4g}" for value in row)] for layer, row in enumerate(rows)]
        print_table(Table(["layer", *SITES], lines), "an input is skipped where its magnitude is at most this; 0: none")
    if layers:
        titles = ["layer", "rank", *(name.replace("_", " ") for name in _FIGURES)]
        lines = [
            [str(layer["layer"]), str(layer["rank"]), *(f"{layer[n]:.1%}" if n in layer else "" for n in _FIGURES)]
            for layer in layers
        ]
        print_table(Table(titles, lines), "figures on the half of the calibration text that the biases were made from")


def _diff(arguments: argparse.Namespace) -> None:
    """Fields, then every threshold that differs."""
    with held_back():
        from spqt_ti.model.sites import SITES
        from spqt_ti.sparsity.shared_policies import find_policy
    first, second = find_policy(arguments.first), find_policy(arguments.second)
    heads = [describe(policy) for policy in (first, second)]
    names = [name for name in dict.fromkeys([*heads[0], *heads[1]]) if name != "predictors"]
    fields = {
        name: [head.get(name) for head in heads] for name in names if heads[0].get(name) != heads[1].get(name)
    }  # fmt: skip
    alike = first.thresholds.shape == second.thresholds.shape
    sites: list[dict[str, Any]] = [
        {"layer": layer, "site": site, "thresholds": [float(a), float(b)]}
        for layer, rows in enumerate(zip(first.thresholds, second.thresholds, strict=False))
        for site, a, b in zip(SITES, *rows, strict=True)
        if a != b and alike
    ]
    weighted = sorted(
        f"{layer}.{site}"
        for layer, site in first.weights.keys() | second.weights.keys()
        if not _same_weights(first, second, (layer, site))
    )
    if arguments.json:
        print_json({"fields": fields, "thresholds": sites, "weights": weighted})
        return
    for name, (a, b) in fields.items():
        print(f"{name + ':':24}{a} | {b}")
    if weighted:
        print(f"{'weights of inputs:':24}differ at {', '.join(weighted)}")
    if sites:
        lines = [[str(one["layer"]), one["site"], *(f"{value:.4g}" for value in one["thresholds"])] for one in sites]
        print_table(Table(["layer", "site", "first", "second"], lines))
    if not (fields or sites or weighted):
        print("the same")


def _same_weights(first: SparsityPolicy, second: SparsityPolicy, key: tuple[int, str]) -> bool:
    import numpy as np

    a, b = first.weights.get(key), second.weights.get(key)
    return a is not None and b is not None and np.array_equal(a, b)


def _plot(arguments: argparse.Namespace) -> None:
    with held_back():
        from spqt_ti.benchmark.plot import check_matplotlib, plot_policies
        from spqt_ti.sparsity.shared_policies import find_policy
    check_matplotlib()
    policies = [(Path(name).name, find_policy(name)) for name in arguments.policies]
    plot_policies(policies, arguments.output)
    print(arguments.output)


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
