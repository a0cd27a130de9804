"""A plan of static pruning: at which rate each group of layers loses FFN channels (ASAF; docs/allocation.md).

`spqt quantize --plan` removes the channels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spqt_ti.allocation.allocators import KeepWithin, allocate
from spqt_ti.allocation.grouped import PRICE, STEP, GroupSettings
from spqt_ti.allocation.problem import Allocation, BudgetProblem
from spqt_ti.container import Container
from spqt_ti.convert.prune import STEP as CHANNELS
from spqt_ti.convert.prune import kept_width
from spqt_ti.errors import AllocationError
from spqt_ti.parallel.executors import Executor
from spqt_ti.parallel.study import ModelReference, Request
from spqt_ti.parallel.sweep import sweep
from spqt_ti.sparsity.allocate import tables
from spqt_ti.sparsity.allocate.studies import CHANNELS as PRUNED_CHANNELS
from spqt_ti.sparsity.policy import write_text
from spqt_ti.sparsity.search.sample import spread
from spqt_ti.texts import paragraph_hashes, sha256

MODES = {"corrected": "asaf", "paper": "paper", "uniform": "uniform", "greedy": "greedy", "least-sum": "least-sum"}
FORMAT = 1
WINDOW = 256  # tokens: a chunk of prefill
MIN_TOKENS = 256
CALIBRATION_WINDOWS, UNSEEN_WINDOWS = 16, 8

_SEARCHED, _CALIBRATED, _UNSEEN = 0.0, 0.33, 0.66  # offsets of the windows, as for `spread`


@dataclass(frozen=True)
class StaticSettings:
    """What ASAF is given. `alpha` to `beta`: rates, in steps of `rate_step` from `alpha` on; `delta_max`: relative rise
    of the perplexity; `measure`: "kl" or "perplexity" (see `tables.degradations`); `exact`: ranges of layers are
    measured and not added up; `windows` of 256 tokens.

    Raises AllocationError for what makes no sense.
    """

    mode: str = "corrected"
    alpha: float = 0.01
    beta: float = 0.15
    rate_step: float = 0.02
    delta_max: float = 0.01
    measure: str = "kl"
    exact: bool = False
    windows: int = 4
    step: float = STEP
    price: float = PRICE

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise AllocationError(f"unknown mode {self.mode!r}; there are: {', '.join(MODES)}")
        if self.measure not in tables.MEASURES:
            raise AllocationError(f"unknown measure {self.measure!r}; there are: {', '.join(tables.MEASURES)}")
        if not 0 <= self.alpha <= self.beta < 1:
            raise AllocationError(
                f"rates go from alpha to beta within 0 to 1, not from {self.alpha:g} to {self.beta:g}"
            )
        if not self.rate_step > 0 or self.windows < 1:
            raise AllocationError(
                f"a rate step above 0 and a window or more are needed, not {self.rate_step:g}, {self.windows}"
            )
        if not 0 < self.delta_max < np.inf:
            raise AllocationError(f"delta_max must be a number above 0, not {self.delta_max}")
        GroupSettings(self.step, self.price)

    def rates(self, width: int) -> list[float]:
        """Those nearest to alpha, alpha + rate_step, .. that a network of `width` channels can lose (whole numbers of
        32), from alpha to beta. With a larger beta there are more of them, and the same ones. AllocationError for none.
        """
        count = int((self.beta - self.alpha) / self.rate_step + 1e-9) + 1
        wanted = (self.alpha + self.rate_step * i for i in range(count))
        found = sorted({1 - kept_width(width, rate) / width for rate in wanted})
        bounded = [rate for rate in found if self.alpha - 1e-9 <= rate <= self.beta + 1e-9]
        if not bounded:
            raise AllocationError(
                f"no rate from {self.alpha:g} to {self.beta:g} is a whole number of {CHANNELS} channels of {width}: "
                f"allow rates up to {CHANNELS / width:.3g}"
            )
        return bounded


@dataclass(frozen=True)
class StaticPlan:
    """An allocation for the source of a container, and what it cost on windows that it was not chosen on: mean KL in
    nats, and the relative rise of the perplexity with its noise.
    """

    source_sha256: str
    settings: StaticSettings
    allocation: Allocation
    unseen_kl: float
    unseen_perplexity: float
    calibration: Mapping[str, Any]

    def to_json(self) -> str:
        """The plan file; a line per group."""
        s, a = self.settings, self.allocation
        fields = {
            "spqt_plan": FORMAT, "model": {"sha256": self.source_sha256}, "mode": s.mode, "delta_max": s.delta_max,
            "alpha": s.alpha, "beta": s.beta, "measure": s.measure, "exact": s.exact,
            "degradation": a.degradation, "remaining": a.cost,
            "unseen": {"kl": self.unseen_kl, "perplexity_rise": self.unseen_perplexity},
            "calibration": dict(self.calibration),
        }  # fmt: skip
        groups = ",\n".join(
            "    " + json.dumps({"first": g.first, "layers": g.count, "rate": g.rate}) for g in a.groups
        )
        return json.dumps(fields, indent=2)[:-2] + ',\n  "groups": [\n' + groups + "\n  ]\n}\n"

    def save(self, path: Path) -> None:
        """Write the plan file, whole or not at all; PolicyError names one that cannot be written."""
        write_text(path, self.to_json())


def plan(
    container: Container,
    text: str,
    tokens: Sequence[int],
    settings: StaticSettings,
    executor: Executor,
    folder: Path | None = None,
    shared: str | None = None,
) -> StaticPlan:
    """Measure and allocate, on `tokens` (of `text`, whose hash is kept). `folder`: where measurements are kept (None:
    nowhere); `shared`: see ModelReference.

    Raises AllocationError for a text of fewer than 256 tokens or without windows that the plan is not chosen on, a
    container of format 1 (which does not know its source) or one that is pruned already, and where nothing keeps the
    limit.
    """
    if container.source.sha256 is None:
        raise AllocationError(
            f"{container.path}: of format 1, which does not say what it was made from; quantise again"
        )
    if len(set(container.config.widths())) > 1:
        raise AllocationError(
            f"{container.path}: pruned already, to layers of different widths; allocate on the whole model"
        )
    if len(tokens) < MIN_TOKENS:
        raise AllocationError(f"{len(tokens)} tokens to measure on, expected {MIN_TOKENS} or more")
    length = min(WINDOW, container.config.max_position_embeddings)

    def places(count: int, offset: float) -> list[Sequence[int]]:
        return spread(range(len(tokens)), count, length, offset)

    def request(measured: list[Sequence[int]]) -> Request:
        calibration = places(CALIBRATION_WINDOWS, _CALIBRATED)
        texts = [[[tokens[place] for place in window] for window in some] for some in (calibration, measured)]
        chosen = {"calibration": texts[0], "windows": texts[1], "threads": 1}
        return Request(PRUNED_CHANNELS, ModelReference.of(container, shared), chosen)

    layers, rates = container.config.num_hidden_layers, settings.rates(container.config.intermediate_size)
    chosen_on = places(settings.windows, _SEARCHED)
    unseen_places = _apart(places(UNSEEN_WINDOWS, _UNSEEN), chosen_on, len(tokens))
    searched = request(chosen_on)
    kept = None if folder is None else folder / f"channels-{searched.key}.json"
    table = tables.measure(executor, searched, layers, rates, settings.exact, kept)
    problem = BudgetProblem(np.array(rates), ffn_weights(container), tables.degradations(table, settings.measure))
    limit = KeepWithin(settings.delta_max, GroupSettings(settings.step, settings.price))
    found = allocate(MODES[settings.mode], problem, limit)
    whole = [[group.first, group.count, group.rate] for group in found.groups]
    unseen = sweep(executor, request(unseen_places), [whole], title="check")[0]
    calibration = {"text_sha256": sha256(text), "paragraphs": paragraph_hashes(text), "tokens": len(tokens)}
    return StaticPlan(
        container.source.sha256, settings, found, float(unseen[0]), float(np.expm1(unseen[1])), calibration
    )


def _apart(windows: Sequence[Sequence[int]], chosen_on: Sequence[Sequence[int]], tokens: int) -> list[Sequence[int]]:
    """The windows that share no token with those that the plan is chosen on; AllocationError for none."""
    seen = {place for window in chosen_on for place in window}
    found = [window for window in windows if seen.isdisjoint(window)]
    if not found:
        raise AllocationError(
            f"{tokens} tokens leave no window to check the plan on that it is not chosen on; give a longer text, or "
            "fewer windows"
        )
    return found


def ffn_weights(container: Container) -> np.ndarray:
    """f64 [layers]: what a rate is a share of."""
    config = container.config
    return np.full(config.num_hidden_layers, 3.0 * config.hidden_size * config.intermediate_size)
