"""How a GPU's GEMV divides a band among threads, and which ways are worth measuring. No Taichi here: tuning files hold
divisions.
"""

from __future__ import annotations

from dataclasses import dataclass

LANES = 32  # of a simdgroup
ENOUGH_GROUPS = 512  # of a product: more would only add up more partial sums
_MOST_GROUPS = 4 * ENOUGH_GROUPS  # that are worth measuring
_COLUMNS = 8  # that a simdgroup has in flight


@dataclass(frozen=True)
class Division:
    """How many threadgroups share a band and how many simdgroups, up to four, are in each; powers of two."""

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
        """One of DIVISIONS by its text, "8x4". Raises ValueError for any other."""
        for division in DIVISIONS:
            if str(division) == text:
                return division
        raise ValueError(f"a division must be one of {', '.join(map(str, DIVISIONS))}, not {text!r:.40}")


DIVISIONS = tuple(Division(groups, simdgroups) for groups in (1, 2, 4, 8, 16, 32) for simdgroups in (1, 2, 4))


def default_division(bands: int, cols: int) -> Division:
    """Four simdgroups; as many groups, up to 32, as leave each simdgroup 32 columns, and no more than are enough."""
    groups = 1
    while groups < 32 and groups * 2 * 4 * 32 <= cols and groups * bands < ENOUGH_GROUPS:
        groups *= 2
    return Division(groups, 4)


def candidates(bands: int, cols: int, max_group: int) -> list[Division]:
    """DIVISIONS that leave no simdgroup without columns, start no more groups than help, and fit a device with groups
    of up to `max_group` threads.
    """
    return [
        division
        for division in DIVISIONS
        if (division == DIVISIONS[0] or division.groups * division.simdgroups * _COLUMNS <= cols)
        and (division.groups == 1 or division.groups * bands <= _MOST_GROUPS)
        and division.threads <= max_group
    ]
