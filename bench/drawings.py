"""Draw the layouts, the panels and a token's phases for docs/design.md (needs matplotlib: pip install '.[plot]').

    python bench/drawings.py --folder docs/plots

Sizes and orders come from the package where it has them. The drawings are schematic: a superblock is a box.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from spqt_ti.kernels.shared.geometry import MOST_PANEL_BANDS, ZigzagShape

READ, UNREAD, EDGE, BARRIER = "#4c8dc9", "#e6e6e6", "#444444", "#c0392b"
BAND_COLOURS = ("#4c8dc9", "#e59c3c", "#6aa84f", "#9a6fb0")
COLUMNS, ACTIVE = 8, (1, 4, 5)
QUANT_BYTES = 128

# A layer of the decode kernel (model/cpu/decode_kernel.py): what lies between two barriers, and where a label is long.
PHASES = (
    ("norm", "collect", "GEMV\nqkv"),
    ("sum, RoPE,\nwrite cache",),
    ("attention",),
    ("join,\ncollect", "GEMV\no"),
    ("residual",),
    ("norm", "collect", "GEMV\ngate, up"),
    ("SwiGLU",),
    ("collect", "GEMV\ndown"),
    ("residual",),
)
WIDE = {"GEMV\nqkv": 2.2, "GEMV\no": 1.8, "GEMV\ngate, up": 3.0, "GEMV\ndown": 2.2, "sum, RoPE,\nwrite cache": 1.6}
SPLIT = ("GEMV", "attention", "sum", "SwiGLU", "residual")  # the work of these is shared; others every worker does


def axes_of(figure: Figure, place: tuple[int, int, int], title: str) -> Axes:
    axes = figure.add_subplot(*place)
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
    return axes


def box(axes: Axes, x: float, y: float, width: float, height: float, colour: str, text: str = "") -> None:
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor=EDGE, linewidth=0.6))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=7.5)


def fit(axes: Axes, left: float, right: float, bottom: float, top: float) -> None:
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def draw_layouts() -> Figure:
    """What a superblock holds in either layout, and what an inactive input saves."""
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    row = axes_of(figure, (1, 2, 1), "row (ggml): a superblock is 256 inputs of one output")
    zigzag = axes_of(figure, (1, 2, 2), "zigzag: a superblock is 256 outputs of one input")
    for y in range(6):
        for half in range(2):
            box(row, 4 * half, 5 - y, 4, 1, READ, f"{2 * y + half}")
    for band in range(2):
        for column in range(COLUMNS):
            colour = READ if column in ACTIVE else UNREAD
            box(zigzag, column, 3 * (1 - band), 1, 3, colour, f"{band * COLUMNS + column}")
        zigzag.text(-0.2, 3 * (1 - band) + 1.5, f"band {band}", rotation=90, ha="right", va="center", fontsize=8)
    for axes, result in ((row, "every superblock has an active input: all are read"), (zigzag, "3 of 8 are read")):
        for column in range(COLUMNS):
            active = column in ACTIVE
            colour = READ if active else UNREAD
            box(axes, column + 0.1, 6.5, 0.8, 0.6, colour, "" if active else "0")
        axes.text(-0.2, 6.8, "x", ha="right", va="center", fontsize=9)
        axes.text(COLUMNS / 2, -0.5, result, ha="center", va="center", fontsize=9)
        fit(axes, -0.8, COLUMNS + 0.1, -1, 7.3)
    return figure


def stored_order(shape: ZigzagShape) -> Iterator[tuple[int, int]]:
    """(band, column) of the superblocks as a container has them."""
    return ((band, column) for band in range(shape.bands) for column in range(shape.cols))


def panel_order(shape: ZigzagShape) -> Iterator[tuple[int, int]]:
    """(band, column) of the superblocks as the device has them."""
    for first, height in shape.panels:
        for column in range(shape.cols):
            for band in range(first, first + height):
                yield band, column


def draw_panels() -> Figure:
    """The order of superblocks in a container and on the device, and where one column's are."""
    shape = ZigzagShape(4 * 256, COLUMNS)
    wanted = ACTIVE[0]
    figure = Figure(figsize=(9.5, 3.0), layout="constrained")
    stored = axes_of(figure, (2, 1, 1), "in a container: band by band")
    device = axes_of(figure, (2, 1, 2), f"on the device: panel, column, band (up to {MOST_PANEL_BANDS} bands a panel)")
    for axes, order in ((stored, stored_order(shape)), (device, panel_order(shape))):
        places = list(order)
        for place, (band, column) in enumerate(places):
            box(axes, place, 0, 1, 1, BAND_COLOURS[band] if column == wanted else UNREAD, f"{column}")
        fit(axes, -0.2, len(places) + 0.2, -0.9, 1.1)
    middle = len(BAND_COLOURS) * COLUMNS / 2
    scattered = f"column {wanted}: scattered pieces of {QUANT_BYTES} bytes (a colour per band)"
    whole = (
        f"column {wanted}: one piece, {QUANT_BYTES} bytes a band, {QUANT_BYTES * MOST_PANEL_BANDS // 1024} KiB with all"
    )
    stored.text(middle, -0.5, scattered, ha="center", va="center", fontsize=9)
    device.text(middle, -0.5, whole, ha="center", va="center", fontsize=9)
    return figure


def draw_token() -> Figure:
    """One layer of a token on two workers: phases, and the barriers between them. Widths mean nothing."""
    figure = Figure(figsize=(12, 2.4), layout="constrained")
    axes = axes_of(figure, (1, 1, 1), "A layer of a token: two workers, a spin barrier (red) after each phase")
    x = 0.0
    for phase in PHASES:
        for name in phase:
            width = WIDE.get(name, 1.15)
            for worker in range(2):
                shared = name.startswith(SPLIT)
                box(axes, x, 1.1 * (1 - worker), width, 1, BAND_COLOURS[worker] if shared else UNREAD, name)
            x += width
        axes.plot([x + 0.1, x + 0.1], [-0.1, 2.2], color=BARRIER, linewidth=1.5)
        x += 0.2
    for worker in range(2):
        axes.text(-0.15, 1.1 * (1 - worker) + 0.5, f"worker {worker}", ha="right", va="center", fontsize=8)
    text = "coloured: a share of the work each; grey: all of it each, cheaper than a barrier (widths are not to scale)"
    axes.text(x / 2, -0.45, text, ha="center", va="center", fontsize=9)
    fit(axes, -1.6, x, -0.7, 2.3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("docs/plots"))
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    # The same bytes each time: no dates, no random names.
    matplotlib.rcParams.update({"svg.hashsalt": "spqt-ti", "svg.fonttype": "none", "font.family": "sans-serif"})
    metadata = {"Date": None} if options.format == "svg" else None
    for name, draw in (("layouts", draw_layouts), ("panels", draw_panels), ("token", draw_token)):
        draw().savefig(options.folder / f"{name}.{options.format}", dpi=110, metadata=metadata, facecolor="white")


if __name__ == "__main__":
    main()
