"""Plots of measurements, with matplotlib where it is installed (extra `plot`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

from spqt_ti.benchmark.decode import DecodeRow
from spqt_ti.benchmark.gemv import GemvRow
from spqt_ti.errors import GenerationError
from spqt_ti.model.sites import SITES
from spqt_ti.sparsity.policy import SparsityPolicy

Point = tuple[float, float, float]  # x, y, error of y


def check_matplotlib() -> None:
    """Raise GenerationError, before anything is measured, where plots cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise GenerationError("--plot needs matplotlib: pip install 'spqt-ti[plot]'")


def plot_gemv(rows: Sequence[GemvRow], path: str) -> None:
    """Speed-up of the full kernel over the dense zigzag one by density, a line per matrix, beside 1 / density."""
    lines: dict[str, list[Point]] = {}
    for row in rows:
        if row.kernel == "full":
            error = row.speedup_over_dense * row.spread / row.microseconds
            lines.setdefault(f"{row.rows}x{row.cols} {row.scheme}", []).append(
                (row.density, row.speedup_over_dense, error)
            )
    densities = sorted({density for points in lines.values() for density, _, _ in points})
    lines["1 / density"] = [(density, 1 / density, 0.0) for density in densities]
    _draw(lines.items(), "density", "speed-up over dense", path)


def plot_decode(rows: Sequence[DecodeRow], path: str) -> None:
    """Tokens per second by share of the weights skipped, a line per method; each begins where it is dense."""
    lines: dict[str, list[Point]] = {row.method: [] for row in rows if row.method != "dense"}
    for row in rows:
        for method in [row.method] if row.method in lines else lines or ["dense"]:
            lines.setdefault(method, []).append((row.realised_sparsity, row.tokens_per_second, row.spread))
    named = [(f"{rows[0].model}, {rows[0].threads} threads, {method}", points) for method, points in lines.items()]
    _draw(named, "share of the layers' weights skipped", "tokens per second", path)


def plot_policies(policies: Sequence[tuple[str, SparsityPolicy]], path: str) -> None:
    """Thresholds by layer, a line per policy, a field per site; layers that run dense (0) are left out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    for number, site in enumerate(SITES):
        axes: Any = figure.add_subplot(2, 2, number + 1, title=site, xlabel="layer", ylabel="threshold")
        for name, policy in policies:
            layers = policy.thresholds[:, number].nonzero()[0]
            axes.plot(layers, policy.thresholds[layers, number], marker=".", label=name)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    _save(figure, path)


def _draw(lines: Iterable[tuple[str, Sequence[Point]]], x: str, y: str, path: str) -> None:
    """The y axis begins at 0, so that a ratio is seen as what it is; bars are spreads over rounds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes: Any = figure.add_subplot(xlabel=x, ylabel=y)
    for label, points in lines:
        xs, values, errors = zip(*sorted(points), strict=True)
        shown = None if not any(errors) else errors
        axes.errorbar(xs, values, shown, marker="o", capsize=3, label=label, linestyle="-" if shown else ":")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    _save(figure, path)


def _save(figure: Any, path: str) -> None:
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise GenerationError(f"{path}: cannot write the plot: {error}") from error
