"""How a GPU's GEMV divides a band among threads, and which ways are worth measuring. No Taichi here: tuning files hold
divisions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LANES = 32  # of a simdgroup
ENOUGH_GROUPS = 512  # of a product: more would only add up more partial sums
MOST_GROUPS, SIMDGROUPS = 64, (1, 2, 4, 8)  # of a division
_MOST_MEASURED_GROUPS = 4 * ENOUGH_GROUPS  # of a product
_COLUMNS = 8  # that a simdgroup has in flight
_RESIDENT = 2  # groups of eight simdgroups that a processor runs side by side, for their registers
_CONSTANT_COLUMNS = 30  # that a simdgroup could multiply in the time in which a group starts and adds up


@dataclass(frozen=True)
class Division:
    """How many threadgroups share a band, and how many simdgroups are in each (a power of two up to eight)."""

    groups: int
    simdgroups: int

    @property
    def threads(self) -> int:
        """Of a threadgroup."""
        return self.simdgroups * LANES

    @property
    def most_segments(self) -> int:
        """Of an active list that a threadgroup can add up (see active_list.py)."""
        return 2 * self.threads

    def __str__(self) -> str:
        return f"{self.groups}x{self.simdgroups}"

    @classmethod
    def parse(cls, text: str) -> Division:
        """A division by its text, "8x4". Raises ValueError for one that there is not."""
        numbers = re.fullmatch(r"([1-9][0-9]?)x([1-8])", text)
        division = cls(*map(int, numbers.groups())) if numbers else None
        if division is None or division.groups > MOST_GROUPS or division.simdgroups not in SIMDGROUPS:
            raise ValueError(
                f"a division must be threadgroups x simdgroups, 1 to {MOST_GROUPS} and one of "
                f"{', '.join(map(str, SIMDGROUPS))}, such as 8x4, not {text!r:.40}"
            )
        return division


_GROUPS = (1, 2, 3, 4, 6, 8, 11, 16, 22, 32)  # that are worth measuring
DIVISIONS = tuple(Division(groups, simdgroups) for groups in _GROUPS for simdgroups in SIMDGROUPS[1:])


def default_division(bands: int, cols: int, processors: int | None = None) -> Division:
    """On a device with so many processors the division that should take least: rounds of the groups that run side by
    side, times what each of them does. Otherwise four simdgroups; as many groups, up to 32, as leave each simdgroup 32
    columns, and no more than are enough.
    """
    if processors is not None and cols >= 8 * _COLUMNS:
        side_by_side = _RESIDENT * processors
        return min(
            (Division(groups, 8) for groups in range(1, MOST_GROUPS + 1) if groups * 8 * _COLUMNS <= cols),
            key=lambda division: (
                -(-bands * division.groups // side_by_side) * (cols / (8 * division.groups) + _CONSTANT_COLUMNS)
            ),
        )
    groups = 1
    while groups < 32 and groups * 2 * 4 * 32 <= cols and groups * bands < ENOUGH_GROUPS:
        groups *= 2
    return Division(groups, 4)


def candidates(bands: int, cols: int, max_group: int, processors: int | None = None) -> list[Division]:
    """The default and those of DIVISIONS that leave no simdgroup without columns, start no more groups than help, and
    fit a device with groups of up to `max_group` threads.
    """
    default = default_division(bands, cols, processors)
    found = [
        division
        for division in DIVISIONS
        if division.groups * division.simdgroups * _COLUMNS <= cols
        and (division.groups == 1 or division.groups * bands <= _MOST_MEASURED_GROUPS)
        and division.threads <= max_group
    ]
    return found if default in found else [default, *found]
