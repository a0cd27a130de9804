"""The harness finds what Metal would not run or would run wrongly, and computes what a GPU would."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metal import limits
from metal.emulator import Emulator, LaunchError, build
from metal.harness_kernels import GROUPS, SIZE, THREADS, correct, wrong
from metal.tasks import Kernel, MetalError
from metal.translation import checked, translate


@pytest.fixture(scope="module")
def translated(tmp_path_factory) -> Callable[[str, Any], Kernel]:
    """Translates a kernel."""

    def translate_kernel(name: str, kernel: Any) -> Kernel:
        return translate(name, checked(kernel), tmp_path_factory.mktemp(name))

    return translate_kernel


# Computing ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emulators(translated, tmp_path_factory) -> dict[str, Emulator]:
    return build(itertools.starmap(translated, correct().items()), tmp_path_factory.mktemp("correct"))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(-1000, 1000))
def test_barriers_shared_memory_and_atomics(emulators, seed, factor):
    """In any order of groups and threads."""
    x = np.random.default_rng(seed).integers(-1000, 1000, SIZE).astype(np.int32)
    sums, totals = np.zeros(SIZE, np.int32), np.array([5], np.int32)
    emulators["scan"].launch(x, sums, totals, factor, seed=seed)
    expected = (factor * x).reshape(GROUPS, THREADS).cumsum(axis=1)
    np.testing.assert_array_equal(sums, expected.reshape(-1))
    assert totals[0] == 5 + expected[:, -1].sum()


@settings(max_examples=6, deadline=None)  # a run-time range has 131,072 threads
@given(st.integers(0, 2**32 - 1), st.integers(0, SIZE), st.sampled_from([0.5, -1.0, 3.0]))
def test_scalars_f16_and_tasks_in_turn(emulators, seed, count, slope):
    halves = np.random.default_rng(seed).uniform(-2, 2, SIZE).astype(np.float16)
    words = (halves.view(np.uint16).astype(np.uint32) << 16) | 0xABC
    y = np.full(SIZE, 7, np.float32)
    emulators["affine"].launch(words, y, count, 16, slope, seed=seed)
    expected = np.exp(-np.float32(slope) * halves.astype(np.float32))
    np.testing.assert_allclose(y[:count], expected[:count], rtol=1e-6)
    assert (y[count:] == 7).all()


def test_wrong_arguments_are_refused(emulators):
    x, totals = np.zeros(SIZE, np.int32), np.zeros(1, np.int32)
    with pytest.raises(TypeError, match="takes 4 arguments, not 3"):
        emulators["scan"].launch(x, x, totals)
    with pytest.raises(TypeError, match="sums is a one-dimensional"):
        emulators["scan"].launch(x, x.reshape(2, -1), totals, 1)


# What Metal would run wrongly -----------------------------------------------------------------------------------------

WRONG = wrong()

MISTAKES = {
    "divergent_barrier": r"divergent barrier in group \d: thread \d+ waits in line \d+, .* has finished",
    "barrier_in_a_loop_of_different_length": r"divergent barrier in group 1: thread 13 waits .* has finished",
    "different_barriers": r"divergent barrier .* waits in line \d+, .* waits in line \d+",
    "divergent_atomic": r"divergent barrier in group \d: thread 0 waits",
    "index_past_the_end": rf"thread {SIZE - 1}: x\[{SIZE}\] is outside its {SIZE} elements",
    "index_before_the_start": r"x\[\d+\] is outside",  # Taichi wraps byte offsets: 2^30 - 1 instead of -1
    "index_outside_shared_memory": rf"\[{THREADS - 1}\] is outside its {THREADS - 1} elements",
    "missing_barrier": r"race: thread .* since the last barrier|that no thread of its group has written",
    "missing_second_barrier": r"race: thread \d+ \w+ .* since the last barrier",
    "atomic_instead_of_a_barrier": r"race: thread \d+ reads .* since the last barrier|that no thread .* has written",
    "same_array_twice": r"race: thread \d+ \w+ [xy]\[\d+\], which thread \d+ \w+ in the same task",
    "neighbours_in_device_memory": r"race: thread \d+ reads x\[\d+\], which thread \d+ wrote in the same task",
    "two_writers": r"race: thread \d+ writes x\[\d+\], which thread \d+ wrote in the same task",
    "shared_memory_that_nobody_wrote": r"reads .*\[5\], threadgroup memory that no thread of its group has written",
}


@pytest.fixture(scope="module")
def mistaken(translated, tmp_path_factory) -> dict[str, Emulator]:
    kernels = [translated(name, kernel) for name, kernel in WRONG.items() if name in MISTAKES]
    return build(kernels, tmp_path_factory.mktemp("mistaken"))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_the_launch(mistaken, name, seed):
    size = SIZE + 1 if name == "atomic_instead_of_a_barrier" else SIZE
    x = (np.arange(size) % 2).astype(np.int32 if "atomic" in name else np.float32)
    arrays = [x if name == "same_array_twice" else x.copy() for _ in mistaken[name].kernel.arguments]
    with pytest.raises(LaunchError, match=MISTAKES[name]):
        mistaken[name].launch(*arrays, seed=seed)


# What Metal would not take --------------------------------------------------------------------------------------------

REFUSALS = {
    "too_much_shared_memory": r"32772 bytes of threadgroup memory; Metal has 32768",
    "too_many_threads": r"2048 threads in a group; Metal has 1024",
    "too_many_buffers": r"buffer index 3\d; Metal has indices up to 30",
    "double_precision": r"Type f64 not supported",
    "wide_atomic": r"64-bit atomics require the Int64Atomics capability",
    "float_atomic_on_shared_memory": r"spirv-val: error",
    "subgroup_operation": r"requires one of these capabilities: .*GroupNonUniform",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_metal_does_not_have_is_refused(translated, name):
    with pytest.raises(MetalError, match=REFUSALS[name]):
        translated(name, WRONG[name])


def test_every_wrong_kernel_is_expected_to_fail():
    assert set(WRONG) == {*MISTAKES, *REFUSALS}


def test_limits_as_measured_on_a_task(emulators):
    (task,) = emulators["scan"].kernel.tasks
    assert limits.threadgroup_bytes(task) == 4 * THREADS
    assert (task.threads, task.groups) == (THREADS, GROUPS)
    assert len(limits.buffer_indices(task)) == 4  # three arrays and the scalar
