"""A plan of static pruning, as `spqt allocate` writes it: at which rate each group of layers loses FFN channels.

    {"spqt_plan": 1, "model": {"sha256": "..."}, "groups": [{"first": 0, "layers": 12, "rate": 0.05}, ...]}

Written by hand, `{"spqt_plan": 1, "rates": [...]}` with a rate per layer is a plan too, for any source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spqt_ti.bounded_json import JsonError, read_object
from spqt_ti.errors import AllocationError

__all__ = ["PLAN_FORMAT", "PruningPlan"]

PLAN_FORMAT = 1
_MOST_BYTES = 32 << 20


@dataclass(frozen=True)
class PruningPlan:
    """Rates f64 of each layer, and the SHA-256 of the source that they were found for (None: any).

    `details`: the plan's other fields, `calibration` (hashes of the text that it was measured on) among them.
    """

    rates: tuple[float, ...]
    source_sha256: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Read a plan file; AllocationError names the file, and what is wrong with it."""
        try:
            fields = read_object(Path(path).expanduser(), _MOST_BYTES)
        except OSError as error:
            raise AllocationError(f"{path}: the plan cannot be read: {error.strerror or error}") from error
        except JsonError as error:
            raise AllocationError(f"{path}: not a plan: {error}") from error
        try:
            return cls.from_dict(fields)
        except AllocationError as error:
            raise AllocationError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> PruningPlan:
        """From the content of a file. Raises AllocationError for another format, groups that are not one after the
        other, and rates that are no numbers, not within `alpha` to `beta` of the plan, or not within 0 to 1.
        """
        if fields.get("spqt_plan") != PLAN_FORMAT:
            raise AllocationError(f"spqt_plan is {fields.get('spqt_plan')!r:.40}, expected {PLAN_FORMAT}")
        if ("groups" in fields) == ("rates" in fields):
            raise AllocationError("a plan has either groups or rates")
        rates = _from_groups(fields["groups"]) if "groups" in fields else _numbers(fields["rates"])
        _check_bounds(rates, fields)
        details = {name: value for name, value in fields.items() if name not in ("spqt_plan", "model", "rates")}
        if not isinstance(details.get("calibration", {}), Mapping):
            raise AllocationError("calibration is no object")
        return cls(tuple(rates), _source(fields.get("model")), details)

    def records(self) -> list[dict[str, Any]]:
        """What a container says of the search for the plan: nothing of one that was written by hand."""
        if not self.details:
            return []
        said = {name: value for name, value in self.details.items() if name not in ("calibration", "groups")}
        return [{"kind": "allocation", **said, **self.details.get("calibration", {})}]

    def check(self, source_sha256: str | None, layers: int) -> None:
        """Raise AllocationError unless the plan is for the source with this hash and number of layers."""
        if self.source_sha256 is not None and source_sha256 != self.source_sha256:
            raise AllocationError(
                f"the plan was made for the source with SHA-256 {self.source_sha256[:16]}..., this one has "
                f"{str(source_sha256)[:16]}...: sensitivities do not carry over, so allocate again"
            )
        if len(self.rates) != layers:
            raise AllocationError(f"the plan has rates of {len(self.rates)} layers, the model has {layers}")


def _source(model: Any) -> str | None:
    if model is None:
        return None
    if not isinstance(model, Mapping) or not isinstance(model.get("sha256"), str):
        raise AllocationError("model is no object with the sha256 of the source")
    return str(model["sha256"])


def _from_groups(groups: Any) -> list[float]:
    """A rate per layer; the groups have to cover the layers in order, without gaps."""
    if not isinstance(groups, list) or not groups:
        raise AllocationError("groups is no list of groups")
    rates: list[float] = []
    for group in groups:
        first, count, rate = (
            group.get(key) if isinstance(group, dict) else None for key in ("first", "layers", "rate")
        )
        if type(first) is not int or type(count) is not int or not 1 <= count <= 1 << 16:
            raise AllocationError(f"group {group!r:.80}: expected whole numbers first and layers, and a rate")
        if first != len(rates):
            raise AllocationError(f"a group begins at layer {first}, expected {len(rates)}: groups follow one another")
        rates += _numbers([rate]) * count
    return rates


def _numbers(rates: Any) -> list[float]:
    if not isinstance(rates, Sequence) or isinstance(rates, str) or not rates:
        raise AllocationError("rates is no list of numbers")
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, (int, float)):
            raise AllocationError(f"a rate is {rate!r:.40}, expected a number")
    return [float(rate) for rate in rates]


def _check_bounds(rates: Sequence[float], fields: Mapping[str, Any]) -> None:
    lowest, highest = (_numbers([fields.get(name, default)])[0] for name, default in (("alpha", 0.0), ("beta", 1.0)))
    for layer, rate in enumerate(rates):
        if not 0 <= rate < 1:
            raise AllocationError(f"the rate of layer {layer} is {rate:g}, expected 0 or more and less than 1")
        if not lowest - 1e-9 <= rate <= highest + 1e-9:
            raise AllocationError(
                f"the rate of layer {layer} is {rate:g}, outside the plan's own bounds of {lowest:g} to {highest:g}"
            )
