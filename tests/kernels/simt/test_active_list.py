"""Active lists in segments: the k-th active input of all, and its place."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.active_list import ActiveList, Segments, make_list_reader, spread, whole
from spqt_ti.kernels.simt.groups import SHARED
from spqt_ti.kernels.simt.transfer import upload, zeros

THREADS = 32


@functools.cache
def reader(segments: Segments):
    """The kernel (lengths i32 [segments], out i32 [cols + 1]): places of the active inputs, of which thread t
    of a group finds t, t + THREADS and so on, and last the number of all.
    """
    sum_lengths, segment_of, place_of = make_list_reader(segments, THREADS)
    steps = -(-segments.cols // THREADS)
    array = ti.types.ndarray(dtype=ti.i32, ndim=1)

    @ti.kernel
    def read(lengths: array, out: array):
        ti.loop_config(block_dim=THREADS)
        for t in range(THREADS):
            starts = ti.simt.block.SharedArray((SHARED,), ti.i32)
            total = sum_lengths(ti.static(ActiveList(lengths, 0, 0)), starts, t)
            segment = segment_of(starts, t)
            for step in range(steps):
                k = step * THREADS + t
                if k < total:
                    out[k] = place_of(starts, segment, k)
            if t == 0:
                out[segments.cols] = total

    return read


def check(segments: Segments, lengths: np.ndarray) -> None:
    out = zeros(ti.i32, segments.cols + 1)
    reader(segments)(upload(lengths.astype(np.int32)), out)
    got = out.to_numpy()
    wanted = [s * segments.length + i for s, length in enumerate(lengths) for i in range(length)]
    assert got[-1] == len(wanted)
    np.testing.assert_array_equal(got[: len(wanted)], wanted)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([Segments(70, 10), Segments(640, 64), Segments(320, 5), Segments(7, 7)]), st.data())
def test_any_lengths(segments: Segments, data: st.DataObject) -> None:
    lengths = st.integers(0, segments.length) | st.just(0)
    check(segments, np.array(data.draw(st.lists(lengths, min_size=segments.count, max_size=segments.count))))


@pytest.mark.parametrize("segments", [Segments(640, 64), Segments(320, 5)], ids=str)
def test_all_none_and_one(segments: Segments) -> None:
    full = np.full(segments.count, segments.length)
    check(segments, full)
    check(segments, full * 0)
    for place in (0, segments.count // 2, segments.count - 1):
        check(segments, (np.arange(segments.count) == place) * segments.length)


def test_how_inputs_are_divided() -> None:
    assert whole(301).count == 1
    assert (spread(1).count, spread(256).count, spread(257).count) == (1, 1, 2)
    assert (spread(14336).length, spread(14336).count) == (256, 56)
    assert (spread(28672).length, spread(28672).count) == (512, 56)


def test_too_many_segments() -> None:
    with pytest.raises(ValueError, match="32 threads cannot add up 65 segments"):
        make_list_reader(Segments(650, 10), 32)
