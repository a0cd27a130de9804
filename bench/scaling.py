"""Simulated decoding on more cores than are here: the token kernel's bytes, partial sums and barriers.

    python bench/scaling.py                            # 2, 8 and 64 cores, the assumptions below
    python bench/scaling.py --core-rates 35,22 --machine-rate 50 --cores 1,2

What a token consists of is counted from `model/cpu/decode_kernel.py`:

* weights: every worker reads 1 / workers of the active columns' bytes of each site, and of the head's;
* partial sums: a worker writes f32 sums of all rows of a site, and reads 1 / workers of the rows from every worker;
* norms and index lists: every worker reads all of a site's inputs, which others wrote;
* barriers: nine per layer, three per token.

What these cost is assumed: a core reads weights at `--core-rates` (dense, half of the columns); all cores together
read no more than `--machine-rate` dense, and at half of the columns a share of it, that of a core's two rates; what
another core wrote comes at `--exchange-rate`; at a barrier every core adds to one cache line, one after the other,
`--handover` ns each. Cores are equal and nobody else is there. Not counted: attention, whose bytes grow with the
position, and waiting for a core that is slower.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from spqt_ti.benchmark.shapes import NAMED
from spqt_ti.formats import q4_k, q8_0
from spqt_ti.tables import Table, print_table

BARRIERS_PER_LAYER, BARRIERS_PER_TOKEN = 9, 3
MODELS = {
    "smollm2-135m": (30, 49152),
    "llama-3.2-1b": (16, 128256),
    "llama-2-7b": (32, 32000),
    "llama-3-8b": (32, 128256),
}
MACHINE_RATES = {1: 40.0, 2: 50.0, 8: 75.0, 64: 380.0}  # GB/s: measured, measured, 2 channels of DDR5, 12 of them
BYTES_PER_WEIGHT = q4_k.SCHEME.bytes / q4_k.SCHEME.values
HEAD_BYTES_PER_WEIGHT = q8_0.SCHEME.bytes / q8_0.SCHEME.values


@dataclass(frozen=True)
class Costs:
    """Rates in GB/s; `handover` in ns: an arrival at a barrier."""

    core: float
    machine: float
    exchange: float
    handover: float


@dataclass(frozen=True)
class TokenTime:
    """Microseconds of a token, by what they go to."""

    weights: float
    sums: float
    barriers: float

    @property
    def total(self) -> float:
        return self.weights + self.sums + self.barriers


def token_time(model: str, density: float, cores: int, costs: Costs, dense: Costs) -> TokenTime:
    """Of one of MODELS with this share of active columns; the head is read whole, at the rate of `dense`."""
    layers, vocabulary = MODELS[model]
    shapes = NAMED[model]
    hidden = shapes[0][1]
    weights = layers * sum(rows * cols for rows, cols in shapes) * BYTES_PER_WEIGHT * density
    head = vocabulary * hidden * HEAD_BYTES_PER_WEIGHT
    exchanged = layers * sum(4 * (2 * rows + cols) for rows, cols in shapes) if cores > 1 else 0
    barriers = BARRIERS_PER_LAYER * layers + BARRIERS_PER_TOKEN
    return TokenTime(
        _read_time(weights, cores, costs) + _read_time(head, cores, dense),
        exchanged / costs.exchange / 1e3,
        barriers * cores * costs.handover / 1e3 if cores > 1 else 0.0,
    )


def _read_time(size: float, cores: int, costs: Costs) -> float:
    return size / min(costs.machine, cores * costs.core) / 1e3


def table(models: Sequence[str], cores: Sequence[int], options: argparse.Namespace) -> Table:
    """A row per model, number of cores and density."""
    rows = []
    for model in models:
        for count in cores:
            machine = options.machine_rate or MACHINE_RATES[count]
            shares = [rate / options.core_rates[0] for rate in options.core_rates]
            dense, half = (
                Costs(rate, machine * share, options.exchange_rate, options.handover)
                for rate, share in zip(options.core_rates, shares, strict=True)
            )
            before = token_time(model, 1.0, count, dense, dense)
            for density, costs in ((1.0, dense), (0.5, half)):
                time = token_time(model, density, count, costs, dense)
                rows.append(
                    [
                        model, str(count), f"{machine:.0f}", f"{density:.0%}", f"{1e6 / time.total:.1f}",
                        f"{before.total / time.total:.2f}x", *(f"{part / time.total:.0%}" for part in
                        (time.weights, time.sums, time.barriers)),
                    ]
                )  # fmt: skip
    titles = ["model", "cores", "GB/s", "density", "tokens/s", "over dense", "weights", "sums", "barriers"]
    return Table(titles, rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="some of %(default)s")
    parser.add_argument("--cores", default="2,8,64", help="numbers of cores (default: %(default)s)")
    parser.add_argument("--core-rates", default="35,22", help="GB/s of a core: dense, half (default: %(default)s)")
    parser.add_argument(
        "--machine-rate", type=float, help="GB/s of all cores (default: 40, 50, 75, 380 for 1, 2, 8, 64)"
    )
    parser.add_argument("--exchange-rate", type=float, default=10.0, help="GB/s, per core (default: %(default)s)")
    parser.add_argument("--handover", type=float, default=60.0, help="ns (default: %(default)s)")
    options = parser.parse_args()
    models, cores = options.models.split(","), [int(count) for count in options.cores.split(",")]
    options.core_rates = [float(rate) for rate in options.core_rates.split(",")]
    if unknown := [model for model in models if model not in MODELS]:
        parser.error(f"--models: {unknown[0]!r} is none of {', '.join(MODELS)}")
    if len(options.core_rates) != 2:
        parser.error("--core-rates: two rates are needed, dense and at half of the columns")
    if not options.machine_rate and (other := [count for count in cores if count not in MACHINE_RATES]):
        parser.error(f"--cores {other[0]}: say --machine-rate as well")
    print_table(table(models, cores, options))


if __name__ == "__main__":
    main()
