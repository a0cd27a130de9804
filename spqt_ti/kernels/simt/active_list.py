"""The active list of a product: its active inputs in ascending order, in segments that groups of threads collect
independently of one another.

The active inputs of segment s (inputs s * length up to (s + 1) * length) stand from entry s * length on; their number
is entry s of the lengths. Nobody moves them together: each group of the GEMV sums the lengths up, and finds the k-th
active input of all by them. So collecting is part of whatever computes the inputs, if that is spread over groups.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.groups import exclusive_scan, zero

SEGMENT = 256  # inputs, and threads that collect them
_MOST_SEGMENTS = 64


class ActiveList(NamedTuple):
    """An active list in an array of i32: its first entry, and the first of the lengths of its segments."""

    integers: Any
    entries: Any
    lengths: Any


@dataclass(frozen=True)
class Segments:
    """How `cols` inputs are divided."""

    cols: int
    length: int

    @property
    def count(self) -> int:
        return -(-self.cols // self.length)

    @property
    def padded(self) -> int:
        """A power of two that is not below the count."""
        return 1 << (self.count - 1).bit_length()


def whole(cols: int) -> Segments:
    """One segment: a list that one group collects."""
    return Segments(cols, cols)


def spread(cols: int) -> Segments:
    """Segments of a power of two, from 256 on, so many that each group of a GEMV can add them up."""
    length = SEGMENT
    while length * _MOST_SEGMENTS < cols:
        length *= 2
    return Segments(cols, length)


def make_list_reader(segments: Segments, threads: int):
    """Build the ti.funcs that a group of `threads` threads reads a list with: `sum_lengths`,
    `segment_of`, `place_of`.

    Raises ValueError for more than 2 * threads segments.
    """
    count, padded, length = segments.count, segments.padded, segments.length
    if padded > 2 * threads:
        raise ValueError(f"{threads} threads cannot add up {count} segments")

    @ti.func
    def sum_lengths(active: ti.template(), starts: ti.template(), t):
        """The number of active inputs, for every thread; starts (shared i32 [padded + 1]) become the numbers of those
        before each segment.
        """
        ti.simt.block.sync()
        for part in ti.static(range(-(-padded // threads))):
            s = part * threads + t
            if s < padded:
                starts[s] = 0
                if s < count:
                    starts[s] = active.integers[active.lengths + s]
        total = exclusive_scan(starts, t, padded)
        if t == 0:
            starts[t + padded] = total
        ti.simt.block.sync()
        return total

    @ti.func
    def segment_of(starts: ti.template(), k):
        """The segment of the k-th active input, by bisection; the last one for what lies beyond."""
        segment = zero(k)
        for level in ti.static(range(padded.bit_length() - 2, -1, -1)):
            if starts[segment + (1 << level)] <= k:
                segment += 1 << level
        return segment

    @ti.func
    def place_of(starts: ti.template(), segment: ti.template(), k):
        """Where the k-th active input stands in the list. `segment`: at most its segment, becomes that."""
        while k >= starts[segment + 1]:
            segment += 1
        return segment * length + k - starts[segment]

    @ti.func
    def length_of(active: ti.template(), starts: ti.template(), t):
        """Of a list of one segment: its length."""
        return active.integers[active.lengths]

    @ti.func
    def first_segment(starts: ti.template(), k):
        return 0

    @ti.func
    def same_place(starts: ti.template(), segment: ti.template(), k):
        return k

    return (sum_lengths, segment_of, place_of) if count > 1 else (length_of, first_segment, same_place)
