"""Reductions and scans of a threadgroup, for the GPU backends.

Rules that hold on Metal, Vulkan and CUDA alike, and that every kernel in this folder follows:

* Threads of a group talk through shared memory only: a barrier orders nothing else.
* All threads of a group reach every barrier. An integer atomic counts as one (Taichi's SPIR-V has a barrier there).
* `s[b] = s[b] + s[a]`: `+=` on an element of an array is an atomic.
* A loop's range is a constant multiple of the group, a power of two; a thread is `i & (group - 1)`.
* Shared memory is first touched after a barrier: a group may run the body of a loop more than once.
* Arrays in shared memory have SHARED entries wherever a kernel has several tasks with shared memory: for CUDA, Taichi
  1.7.4 names them by the number of a statement within its task, so that those of two tasks may be one, of the first
  one's size.
* Shared memory is declared outside of conditions, and never touched at a constant index (see `zero`): Taichi 1.7.4
  does not compile the first to SPIR-V, nor the second where it stands in two tasks of a kernel.
"""

from spqt_ti.backend import ti

LOWEST = -3.0e38
SHARED = 1024  # 4 KiB


def array_of(dtype):
    """Annotation of a one-dimensional ndarray of scalars or vectors."""
    return ti.types.ndarray(dtype=dtype, ndim=1)


def round_up(count: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `count`."""
    return -(-count // multiple) * multiple


def log2(power_of_two: int) -> int:
    """The exponent. Raises ValueError for what is not a power of two."""
    if power_of_two < 1 or power_of_two & (power_of_two - 1):
        raise ValueError(f"{power_of_two} is not a power of two")
    return power_of_two.bit_length() - 1


@ti.func
def quotient(number, divisor: ti.template()):
    """number // divisor, of a number that is not negative and a constant; // on i32 is Python's, which is slow."""
    result = number
    if ti.static(divisor & (divisor - 1) == 0):
        result = number >> ti.static(log2(divisor))
    else:
        result = ti.raw_div(number, divisor)
    return result


@ti.func
def zero(t):
    """0 for every thread t, in a way that Taichi does not take for a constant."""
    return ti.min(t, 0)


@ti.func
def group_sum(shared: ti.template(), t, value, threads: ti.template()):
    """Sum of `value` over the group, as a tree, for every thread. `shared`: [threads], of its type."""
    ti.simt.block.sync()
    shared[t] = value
    for level in ti.static(range(1, threads.bit_length())):
        ti.simt.block.sync()
        if t < (threads >> level):
            shared[t] = shared[t] + shared[t + (threads >> level)]
    ti.simt.block.sync()
    return shared[zero(t)]


@ti.func
def group_max(shared: ti.template(), t, value, threads: ti.template()):
    """Largest `value` of the group, for every thread. `shared`: f32 [threads]."""
    ti.simt.block.sync()
    shared[t] = value
    for level in ti.static(range(1, threads.bit_length())):
        ti.simt.block.sync()
        if t < (threads >> level):
            shared[t] = ti.max(shared[t], shared[t + (threads >> level)])
    ti.simt.block.sync()
    return shared[zero(t)]


@ti.func
def group_best(values: ti.template(), entries: ti.template(), t, threads: ti.template()):
    """The highest of f32 values[0:threads] comes to values[0] and its entry of i32 `entries` to entries[0], the lowest
    entry among equals. Read them at `zero(t)`.
    """
    for level in ti.static(range(1, threads.bit_length())):
        ti.simt.block.sync()
        if t < (threads >> level):
            other = t + (threads >> level)
            if values[other] > values[t] or (values[other] == values[t] and entries[other] < entries[t]):
                values[t] = values[other]
                entries[t] = entries[other]
    ti.simt.block.sync()


@ti.func
def exclusive_scan(shared: ti.template(), t, count: ti.template()):
    """Blelloch's scan, in place: shared[i] (i32 [count], count a power of two) becomes the sum of the entries before
    it; returns the sum of all.

    Work of 2 count additions, by count / 2 threads.
    """
    levels = ti.static(count.bit_length() - 1)
    for level in ti.static(range(levels)):
        ti.simt.block.sync()
        if t < (count >> (level + 1)):
            right = ((2 * t + 2) << level) - 1
            shared[right] = shared[right] + shared[right - (1 << level)]
    ti.simt.block.sync()
    last = zero(t) + count - 1
    total = shared[last]
    ti.simt.block.sync()
    if t == 0:
        shared[last] = 0
    for level in ti.static(range(levels - 1, -1, -1)):
        ti.simt.block.sync()
        if t < (count >> (level + 1)):
            right = ((2 * t + 2) << level) - 1
            left = right - (1 << level)
            moved = shared[left]
            shared[left] = shared[right]
            shared[right] = shared[right] + moved
    ti.simt.block.sync()
    return total
