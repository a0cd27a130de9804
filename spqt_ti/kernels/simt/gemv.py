"""The zigzag GEMV on GPUs: y = W x over the active inputs, or over all of them.

A band has `groups` threadgroups of `simdgroups` times 32 lanes (n_tg and n_sg of the paper). The simdgroups of all a
band's groups split the inputs evenly. Eight lanes have a column at work, 128 bits of it each, so that a simdgroup has
four. A lane loads the words of two or three columns while it multiplies those of the columns before, and keeps the sums
of its 32 rows in registers. A group adds its lanes' sums up through shared memory, in order, and writes 256 partial
sums; whoever needs y adds the groups up, in order. So a result repeats bit for bit, and depends on (groups, simdgroups)
by rounding only.
"""

import copy
import functools
from typing import Any, NamedTuple

import numpy as np

from spqt_ti.backend import processors, ti
from spqt_ti.kernels.simt.active_list import ActiveList, Segments, make_list_reader, spread, whole
from spqt_ti.kernels.simt.collect import Inputs, Rule, make_collect_segment
from spqt_ti.kernels.simt.division import LANES, Division, default_division
from spqt_ti.kernels.simt.groups import SHARED, array_of, log2, quotient
from spqt_ti.kernels.simt.schemes.decoder import ONE, PARTS, PIECE, Matrix, words4
from spqt_ti.kernels.simt.submission import Launch, Submission
from spqt_ti.kernels.simt.transfer import upload, zeros
from spqt_ti.kernels.simt.zigzag import BAND, SLOTS, ZigzagWords

_REDUCE_THREADS = 256
_COLLECT_THREADS = 256
_ARRAYS = ("quants", "headers", "a", "integers")  # that the kernels below take


def columns_in_flight(loads: int) -> int:
    """Of a lane that reads `loads` times 128 bits of each: as many as fit the 128 registers of a thread with which a
    processor runs 16 simdgroups side by side.
    """
    return 3 if loads == 1 else 2


def group_count(shape: ZigzagWords, division: Division) -> int:
    """Threadgroups of a GEMV."""
    return shape.bands * division.groups


def partial_size(shape: ZigzagWords, division: Division) -> int:
    """Entries of the partial sums [groups][padded rows]."""
    return division.groups * shape.padded_rows


class _Band(NamedTuple):
    """A band as a lane reads it: its first entries, entries from column to column, and the piece of column 0."""

    quants: Any
    entries: Any
    stride: Any
    headers: Any
    headers_at: Any  # of the matrix
    piece: Any
    part: Any


def make_gemv(shape: ZigzagWords, division: Division, segments: Segments | None = None, skips_on_the_fly: bool = False):
    """Build the ti.func of one thread of the GEMV, the i-th of `group_count(...) * division.threads`, which returns the
    number of active inputs.

    Arguments: i; the matrix; a and the offset of x in it; the active list (`listed` 0: every input, in order); a
    threshold; the offset of the partial sums in a. `segments`: of the list, by default one. With `skips_on_the_fly` (B2
    of the paper) no list is read: all columns are split over the simdgroups, which leave out those with |x| <=
    threshold. Raises ValueError for more segments than a group can add up, and for more than eight simdgroups.
    """
    at_once = min(8, SHARED // (division.simdgroups * SLOTS * PARTS))  # rows of a part that are added up
    totals_at_once = min(BAND // LANES, SHARED // division.threads)  # of a lane
    if at_once < 4:
        raise ValueError(f"the sums of {division.simdgroups} simdgroups do not fit the shared memory of a task")
    segments = segments or whole(shape.cols)
    sum_lengths, segment_of, place_of = make_list_reader(segments, division.threads)
    bands, cols, pieces, last_parts = shape.bands, shape.cols, shape.pieces, shape.last_parts
    decoder = shape.decoder
    loads, has_minimum, units, half_stride = decoder.loads, decoder.has_minimum, decoder.units, decoder.half_stride
    entry, load_header, step_and_minimum = decoder.entry, decoder.load_header, decoder.step_and_minimum
    packed, quant, first_value, bias = decoder.packed, decoder.quant, decoder.first_value, decoder.bias
    whole_entries, last_entries = decoder.entries(PARTS), decoder.entries(last_parts)
    in_flight = columns_in_flight(loads)
    workers, threads = division.groups * division.simdgroups, division.threads
    simdgroups = division.simdgroups
    threads_log2, at_once_log2 = log2(threads), log2(at_once)

    @ti.func
    def turned(part, slot):
        """By which rows of a part change places in shared memory, so that the lanes of a simdgroup write to different
        banks.
        """
        return (slot & 3) ^ (((part * at_once) >> 5) << 2)

    @ti.func
    def load_columns(columns: ti.template(), band: ti.template()):
        """The words of some columns of a band that a lane multiplies, and their headers."""
        count = ti.static(columns.n)
        words = ti.Matrix.zero(ti.u32, count * loads, 4)
        heads = ti.Matrix.zero(ti.u32, count, decoder.header_words)
        for u in ti.static(range(count)):
            for load in ti.static(range(loads)):
                words[u * loads + load, :] = band.quants[band.entries[load] + columns[u] * band.stride]
            heads[u, :] = load_header(band.headers, band.headers_at, band.piece + columns[u], pieces)
        return words, heads

    @ti.func
    def add_columns(
        words: ti.template(), heads: ti.template(), inputs: ti.template(), part, sums: ti.template(),
        offsets: ti.template(), one,
    ):  # fmt: skip
        """Add columns, times their inputs, to a lane's 32 rows. `offsets`: of the halves' sums, for the bias of quants,
        then for minima.
        """
        for u in ti.static(range(inputs.n)):
            for half in ti.static(range(2)):
                step, minimum = step_and_minimum(heads[u, :], part, half)
                if ti.static(bias > 0.0):
                    offsets[half] += step * inputs[u]
                if ti.static(has_minimum):
                    offsets[2 + half] += minimum * inputs[u]
                quants = packed(words, u * loads, part, half)
                for byte in ti.static(range(4)):
                    sums[2 * byte + half, :] += (step * inputs[u]) * quant(quants, byte, half, one)

    @ti.func
    def columns_at(k, end, listed, active: ti.template(), starts: ti.template(), segment: ti.template()):
        """The columns of a lane's next turn, which begins at k; beyond the end the last one."""
        columns = ti.Vector([ti.min(k + u * SLOTS, end - 1) for u in ti.static(range(in_flight))])
        if listed:
            for u in ti.static(range(in_flight)):
                columns[u] = place_of(starts, segment, columns[u])
            for u in ti.static(range(in_flight)):
                columns[u] = active.integers[active.entries + columns[u]]
        return columns

    @ti.func
    def add_slots(shared: ti.template(), t, part, sums: ti.template(), totals: ti.template()):
        """The sums of a simdgroup's slots, in order: a lane's eight become totals, of every 32nd of the places that
        `row_of` counts. Some places of each part at a time.
        """
        slot, lane, first_of_simdgroup = (t & (LANES - 1)) >> 3, t & (LANES - 1), (t >> 5) * (SLOTS * PARTS * at_once)
        for turn in ti.static(range(PIECE // PARTS // at_once)):
            ti.simt.block.sync()
            for k in ti.static(range(at_once)):
                word, half, byte = ti.static((turn * at_once + k) // 8, (turn * at_once + k) // 4 % 2, k % 4)
                at = (slot * PARTS + part) * at_once + (k ^ turned(part, slot))
                shared[first_of_simdgroup + at] = sums[2 * byte + half, word]
            ti.simt.block.sync()
            for j in ti.static(range(PARTS * at_once // LANES)):
                place, total = j * LANES + lane, 0.0
                of_part = place >> at_once_log2
                for s in ti.static(range(SLOTS)):
                    at = (s * PARTS + of_part) * at_once + ((place & (at_once - 1)) ^ turned(of_part, s))
                    total += shared[first_of_simdgroup + at]
                totals[turn * (PARTS * at_once // LANES) + j] = total

    @ti.func
    def row_of(place):
        """The row of a band that has this place: `at_once` of each part follow one another."""
        turn, rest = place >> (at_once_log2 + 3), place & (PARTS * at_once - 1)
        value = (turn << at_once_log2) + (rest & (at_once - 1))
        return first_value(rest >> at_once_log2) + (value >> 3) * 4 + (value & 3) + half_stride * (value >> 2 & 1)

    @ti.func
    def add_simdgroups(shared: ti.template(), t, totals: ti.template(), a: ti.template(), target):
        """The sums of a group's simdgroups, in order, to a[target:]."""
        for turn in ti.static(range(BAND // LANES // totals_at_once)):
            ti.simt.block.sync()
            for k in ti.static(range(totals_at_once)):
                shared[((t >> 5) * totals_at_once + k) * LANES + (t & (LANES - 1))] = totals[turn * totals_at_once + k]
            ti.simt.block.sync()
            for part in ti.static(range(-(-totals_at_once // simdgroups))):
                place = part * threads + t
                if place < totals_at_once * LANES:
                    total = 0.0
                    for s in ti.static(range(simdgroups)):
                        total += shared[s * totals_at_once * LANES + place]
                    a[target + row_of(turn * totals_at_once * LANES + place)] = total

    @ti.func
    def gemv(
        i, matrix: ti.template(), a: ti.template(), x, active: ti.template(), listed, threshold, partial
    ):  # fmt: skip
        shared = ti.simt.block.SharedArray((SHARED,), ti.f32)  # simdgroups * SLOTS * PARTS * at_once
        starts = ti.simt.block.SharedArray((SHARED,), ti.i32)
        t = i & (threads - 1)
        group = i >> threads_log2
        band = quotient(group, division.groups)
        group_of_band = group - band * division.groups
        slot, part = (t & (LANES - 1)) >> 3, t & (PARTS - 1)
        worker = group_of_band * simdgroups + (t >> 5)
        count = 0 + cols
        if listed:  # the same for all groups
            count = sum_lengths(active, starts, t)
        # Shares of the columns that differ by at most one.
        each = quotient(count, workers)
        extra = count - each * workers
        first = worker * each + ti.min(worker, extra)
        end = first + each + ti.select(worker < extra, 1, 0)
        parts, stride = 0 + PARTS, 0 + whole_entries
        if band == bands - 1:
            parts, stride = last_parts, last_entries
        entries = ti.Vector(
            [
                matrix.quants_at + band * cols * whole_entries + entry(part, parts, load)
                for load in ti.static(range(loads))
            ]
        )
        piece, headers_at = band * cols, matrix.headers_at
        lane = ti.static(_Band(matrix.quants, entries, stride, matrix.headers, headers_at, piece, part))
        # Through shared memory, because of and-or with two constants compilers make two instructions.
        one = ti.cast(ONE, ti.u32)
        if ti.static(bias > 0.0):
            ti.simt.block.sync()
            shared[t] = ti.bit_cast(one, ti.f32)
            ti.simt.block.sync()
            one = ti.bit_cast(shared[t], ti.u32)
        sums = ti.Matrix.zero(ti.f32, 8, 4)  # [2 byte + half][word]
        offsets = ti.Vector([0.0] * 4)  # of biases, then minima
        k = first + slot
        if ti.static(skips_on_the_fly):
            while k < end:
                value = a[x + k]
                if ti.max(value, 0.0 - value) > threshold:
                    words, heads = load_columns(ti.Vector([k]), lane)
                    add_columns(words, heads, ti.Vector([value]), part, sums, offsets, one)
                k += SLOTS
        elif first < end:
            # Weights are loaded one turn ahead, and the list two turns: nothing waits for the index of a weight, and
            # the weights of a turn come from memory while those of the one before are multiplied.
            segment = 0
            if listed:
                segment = segment_of(starts, k)
            columns = columns_at(k, end, listed, active, starts, segment)
            words, heads = load_columns(columns, lane)
            inputs = ti.Vector([a[x + columns[u]] for u in ti.static(range(in_flight))])
            columns = columns_at(k + in_flight * SLOTS, end, listed, active, starts, segment)
            while k < end:
                next_words, next_heads = load_columns(columns, lane)
                next_inputs = ti.Vector([a[x + columns[u]] for u in ti.static(range(in_flight))])
                columns = columns_at(k + 2 * in_flight * SLOTS, end, listed, active, starts, segment)
                for u in ti.static(range(in_flight)):
                    inputs[u] = ti.select(k + u * SLOTS < end, inputs[u], 0.0)
                add_columns(words, heads, inputs, part, sums, offsets, one)
                words, heads, inputs = next_words, next_heads, next_inputs
                k += in_flight * SLOTS
        for byte, half in ti.static(ti.ndrange(4, 2)):
            unit = ti.static(units[2 * byte + half])
            sums[2 * byte + half, :] = (sums[2 * byte + half, :] - bias * offsets[half]) * unit - offsets[2 + half]
        totals = ti.Vector([0.0] * (BAND // LANES))
        add_slots(shared, t, part, sums, totals)
        add_simdgroups(shared, t, totals, a, partial + (group_of_band * bands + band) * BAND)
        return count

    return gemv


def make_sum_of_groups(shape: ZigzagWords, division: Division):
    """Build the ti.func that adds up the groups' partial sums of a row, in order."""
    padded_rows = shape.padded_rows

    @ti.func
    def sum_of_groups(a: ti.template(), partial, row):
        total = a[partial + row]
        for group in ti.static(range(1, division.groups)):
            total += a[partial + group * padded_rows + row]
        return total

    return sum_of_groups


def make_gemv_kernel(shape: ZigzagWords, division: Division, skips_on_the_fly: bool = False):
    """Build the kernel (quants, headers, a, integers, copy, listed, threshold): one product, for tests and benchmarks,
    with the `copy`-th of the matrices in the arrays.

    a f32: x [cols], then y [padded rows], then the partial sums; integers i32: the active list [cols], its length.
    """
    gemv = make_gemv(shape, division, skips_on_the_fly=skips_on_the_fly)
    sum_of_groups = make_sum_of_groups(shape, division)
    cols, y = shape.cols, shape.cols
    partial = y + shape.padded_rows
    threads = group_count(shape, division) * division.threads

    @ti.kernel
    def multiply(
        quants: array_of(words4), headers: array_of(words4), a: array_of(ti.f32), integers: array_of(ti.i32),
        copy: ti.i32, listed: ti.i32, threshold: ti.f32,
    ):  # fmt: skip
        ti.loop_config(block_dim=division.threads)
        for i in range(threads):
            quants_at, headers_at = copy * shape.quants, copy * shape.headers
            matrix = ti.static(Matrix(quants, quants_at, headers, headers_at))
            gemv(i, matrix, a, 0, ti.static(ActiveList(integers, 0, cols)), listed, threshold, partial)
        ti.loop_config(block_dim=_REDUCE_THREADS)
        for row in range(shape.padded_rows):
            a[y + row] = sum_of_groups(a, partial, row)

    return multiply


def make_full_kernel(shape: ZigzagWords, division: Division):
    """Build the kernel (quants, headers, a, integers, copy, threshold): collect the active inputs, then the product
    over them, without the host knowing their number. Arrays as for `make_gemv_kernel`, with a length for each segment
    of the list.
    """
    segments = spread(shape.cols)
    gemv, sum_of_groups = make_gemv(shape, division, segments), make_sum_of_groups(shape, division)
    collect = make_collect_segment(segments, _COLLECT_THREADS)
    cols, y = shape.cols, shape.cols
    partial = y + shape.padded_rows
    threads, collect_threads_log2 = group_count(shape, division) * division.threads, log2(_COLLECT_THREADS)

    @ti.kernel
    def collect_and_multiply(
        quants: array_of(words4), headers: array_of(words4), a: array_of(ti.f32), integers: array_of(ti.i32),
        copy: ti.i32, threshold: ti.f32,
    ):  # fmt: skip
        ti.loop_config(block_dim=_COLLECT_THREADS)
        for i in range(segments.count * _COLLECT_THREADS):
            shared = ti.simt.block.SharedArray((SHARED,), ti.i32)
            segment, t = i >> collect_threads_log2, i & (_COLLECT_THREADS - 1)
            values = segment * segments.length
            inputs = ti.static(Inputs(a, values))
            rule = ti.static(Rule(threshold, a, 0, False))
            collect(inputs, segment, rule, ti.static(ActiveList(integers, 0, cols)), shared, t)
        ti.loop_config(block_dim=division.threads)
        for i in range(threads):
            quants_at, headers_at = copy * shape.quants, copy * shape.headers
            matrix = ti.static(Matrix(quants, quants_at, headers, headers_at))
            gemv(i, matrix, a, 0, ti.static(ActiveList(integers, 0, cols)), 1, threshold, partial)
        ti.loop_config(block_dim=_REDUCE_THREADS)
        for row in range(shape.padded_rows):
            a[y + row] = sum_of_groups(a, partial, row)

    return collect_and_multiply


class ZigzagGemv:
    """A matrix (u8 [nbytes], `copies` of it in memory) with its GEMV as a kernel of its own, for tests and benchmarks.

    `skips_on_the_fly`: B2. Raises QuantizationError if the number of bytes is not that of the shape.
    """

    def __init__(
        self, data: np.ndarray, shape: ZigzagWords, division: Division | None = None, skips_on_the_fly: bool = False,
        copies: int = 1,
    ) -> None:  # fmt: skip
        self.shape, self._skips_on_the_fly = shape, skips_on_the_fly
        quants, headers = shape.unpack(data)
        self.arrays = {
            "quants": upload(np.tile(quants, (copies, 1))),
            "headers": upload(np.tile(headers, (copies, 1))),
            "integers": zeros(ti.i32, shape.cols + spread(shape.cols).count),
        }
        self._listed = 0
        self._divide(division or default_division(shape.bands, shape.cols, processors()))

    def _divide(self, division: Division) -> None:
        shape, self.division = self.shape, division
        self.arrays["a"] = zeros(ti.f32, shape.cols + shape.padded_rows + partial_size(shape, division))
        self._kernel = make_gemv_kernel(shape, division, self._skips_on_the_fly)
        self._full = functools.cache(functools.partial(make_full_kernel, shape, division))

    def with_division(self, division: Division) -> "ZigzagGemv":
        """The same weights in memory, multiplied with another division; load x anew."""
        other = copy.copy(self)
        other.arrays = dict(self.arrays)
        other._divide(division)
        return other

    def __call__(self, x: np.ndarray, active: np.ndarray | None = None, threshold: float = 0.0) -> np.ndarray:
        """y (f32 [rows]) of x (f32 [cols]) over `active` (i32), None: all, or those above the threshold with B2."""
        self.load(x, active)
        return self.run(self.launch(threshold=threshold))

    def load(self, x: np.ndarray, active: np.ndarray | None = None) -> None:
        """Bring x and the active list to the device. Raises ValueError for another size."""
        if x.shape != (self.shape.cols,):
            raise ValueError(f"x of shape {x.shape} does not fit {self.shape.cols} columns")
        a, integers = self.arrays["a"], self.arrays["integers"]
        a.from_numpy(np.pad(x, (0, a.shape[0] - x.size)))
        self._listed = int(active is not None)
        if active is not None:
            listed = np.zeros(integers.shape[0], np.int32)
            listed[: active.size], listed[self.shape.cols] = active, active.size
            integers.from_numpy(listed)

    def launch(self, copy: int = 0, threshold: float = 0.0) -> Launch:
        """The product with what was loaded."""
        return Launch(self._kernel, _ARRAYS, (copy, self._listed, threshold))

    def launch_full(self, copy: int = 0, threshold: float = 0.0) -> Launch:
        """Collection and product with the x that was loaded."""
        return Launch(self._full(), _ARRAYS, (copy, threshold))

    def run(self, launch: Launch) -> np.ndarray:
        """y (f32 [rows]) of a launch."""
        Submission([launch], self.arrays, graph=False).submit()
        return self.arrays["a"].to_numpy()[self.shape.cols : self.shape.cols + self.shape.rows]
