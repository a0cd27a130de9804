"""Kernels that test the harness itself: some that Metal runs as written, and many that it must not get to run."""

from spqt_ti.backend import ti

THREADS = 64
GROUPS = 4
SIZE = GROUPS * THREADS


def array_of(dtype):
    return ti.types.ndarray(dtype=dtype, ndim=1)


def correct():
    """name -> kernel"""

    @ti.kernel
    def scan(x: array_of(ti.i32), sums: array_of(ti.i32), totals: array_of(ti.i32), factor: ti.i32):
        """sums: running sums of factor * x within each group of THREADS; totals[0] += their total."""
        ti.loop_config(block_dim=THREADS)
        for i in range(SIZE):
            shared = ti.simt.block.SharedArray((THREADS,), ti.i32)
            t = i & (THREADS - 1)
            ti.simt.block.sync()
            shared[t] = factor * x[i]
            for level in ti.static(range(THREADS.bit_length() - 1)):
                ti.simt.block.sync()
                before = 0
                if t >= (1 << level):
                    before = shared[t - (1 << level)]
                ti.simt.block.sync()
                shared[t] = shared[t] + before
            sums[i] = shared[t]
            ti.simt.block.sync()
            ti.atomic_add(totals[0], ti.select(t == 0, shared[THREADS - 1], 0))

    @ti.kernel
    def affine(words: array_of(ti.u32), y: array_of(ti.f32), count: ti.i32, shift: ti.u32, slope: ti.f32):
        """y[:count]: slope * (an f16 in the upper half of a word), then, as a second task, exp of minus that."""
        for i in range(count):
            y[i] = slope * ti.cast(ti.bit_cast(ti.cast(words[i] >> shift, ti.u16), ti.f16), ti.f32)
        ti.loop_config(block_dim=THREADS)
        for i in range(SIZE):
            if i < count:
                y[i] = ti.exp(0.0 - y[i])

    return {"scan": scan, "affine": affine}


def wrong():
    """name -> kernel; what each does wrong is in its name."""

    @ti.kernel
    def divergent_barrier(x: array_of(ti.f32)):
        ti.loop_config(block_dim=THREADS)
        for i in range(SIZE):
            if (i & (THREADS - 1)) < 40:
                ti.simt.block.sync()
            x[i] = 1.0

    @ti.kernel
    def barrier_in_a_loop_of_different_length(x: array_of(ti.f32)):
        ti.loop_config(block_dim=THREADS)
        for i in range(SIZE):
            k = 0
            while k < ti.select(i == 77, 3, 2):
                ti.simt.block.sync()
                k += 1
            x[i] = 1.0

    @ti.kernel
    def different_barriers(x: array_of(ti.f32)):
        ti.loop_config(block_dim=THREADS)
        for i in range(SIZE):
            large = ti.simt.block.SharedArray((THREADS,), ti.f32)
            small = ti.simt.block.SharedArray((THREADS,), ti.f32)
            t = i & (THREADS - 1)
            if x[i] > 0.5:
                large[t] = 2.0 * x[i]
                ti.simt.block.sync()
                x[i] = large[THREADS - 1 - t]
            else:
                small[t] = x[i]
                ti.simt.block.sync()
                x[i] = small[THREADS - 1 - t]

    @ti.kernel
    def divergent_atomic(counts: array_of(ti.i32)):
        ti.loop_config(block_dim=THREADS)
        for i in range(SIZE):
            if (i & (THREADS - 1)) == 0:
                ti.atomic_add(counts[0], 1)

    @ti.kernel
    def index_past_the_end(x: array_of(ti.f32)):
        for i in range(SIZE):
            x[i + 1] = 1.0

    @ti.kernel
    def index_before_the_start(x: array_of(ti.f32), y: array_of(ti.f32)):
        for i in range(SIZE):
            y[i] = x[SIZE // 2 - 1 - i]

    @ti.kernel
    def index_outside_shared_memory(x: array_of(ti.f32)):
        ti.loop_config(block_dim=THREADS)
        for i in range(SIZE):
            shared = ti.simt.block.SharedArray((THREADS - 1,), ti.f32)
            shared[i & (THREADS - 1)] = x[i]
            ti.simt.block.sync()
            x[i] = shared[0]

    @ti.kernel
    def missing_barrier(x: array_of(ti.f32)):
        ti.loop_config(block_dim=THREADS)
        for i in range(SIZE):
            shared = ti.simt.block.SharedArray((THREADS,), ti.f32)
            t = i & (THREADS - 1)
            shared[t] = x[i]
            x[i] = shared[THREADS - 1 - t]

    @ti.kernel
    def missing_second_barrier(x: array_of(ti.f32)):
        ti.loop_config(block_dim=THREADS)
        for i in range(SIZE):
            shared = ti.simt.block.SharedArray((THREADS,), ti.f32)
            t = i & (THREADS - 1)
            shared[t] = x[i]
            ti.simt.block.sync()
            shared[t] = 2.0 * shared[THREADS - 1 - t]
            ti.simt.block.sync()
            x[i] = shared[THREADS - 1 - t]

    @ti.kernel
    def atomic_instead_of_a_barrier(x: array_of(ti.i32)):
        """Its barrier orders device memory only."""
        ti.loop_config(block_dim=THREADS)
        for i in range(SIZE):
            shared = ti.simt.block.SharedArray((THREADS,), ti.i32)
            t = i & (THREADS - 1)
            ti.simt.block.sync()
            shared[t] = i
            ti.atomic_add(x[0], 1)
            x[i + 1] = shared[THREADS - 1 - t]

    @ti.kernel
    def same_array_twice(x: array_of(ti.f32), y: array_of(ti.f32)):
        for i in range(SIZE):
            y[i] = x[i ^ 1]

    @ti.kernel
    def neighbours_in_device_memory(x: array_of(ti.f32), y: array_of(ti.f32)):
        ti.loop_config(block_dim=THREADS)
        for i in range(SIZE):
            x[i] = 1.0
            ti.simt.block.sync()
            y[i] = x[i ^ 1]

    @ti.kernel
    def two_writers(x: array_of(ti.f32)):
        for i in range(SIZE):
            x[i >> 1] = 1.0

    @ti.kernel
    def shared_memory_that_nobody_wrote(x: array_of(ti.f32)):
        ti.loop_config(block_dim=THREADS)
        for i in range(SIZE):
            shared = ti.simt.block.SharedArray((THREADS,), ti.f32)
            t = i & (THREADS - 1)
            if t != 5:
                shared[t] = x[i]
            ti.simt.block.sync()
            x[i] = shared[THREADS - 1 - t]

    @ti.kernel
    def too_much_shared_memory(x: array_of(ti.f32)):
        ti.loop_config(block_dim=THREADS)
        for i in range(SIZE):
            first = ti.simt.block.SharedArray((4096,), ti.f32)
            second = ti.simt.block.SharedArray((4097,), ti.f32)
            t = i & (THREADS - 1)
            first[t] = x[i]
            second[t] = x[i]
            ti.simt.block.sync()
            x[i] = first[THREADS - 1 - t] + second[THREADS - 1 - t]

    @ti.kernel
    def too_many_threads(x: array_of(ti.f32)):
        ti.loop_config(block_dim=2048)
        for i in range(4096):
            x[i] = 1.0

    @ti.kernel
    def double_precision(x: array_of(ti.f32)):
        for i in range(SIZE):
            x[i] = ti.cast(ti.cast(x[i], ti.f64) * 1.1, ti.f32)

    @ti.kernel
    def wide_atomic(x: array_of(ti.i64)):
        for i in range(SIZE):
            ti.atomic_add(x[0], ti.cast(i, ti.i64))

    @ti.kernel
    def float_atomic_on_shared_memory(x: array_of(ti.f32)):
        ti.loop_config(block_dim=THREADS)
        for i in range(SIZE):
            shared = ti.simt.block.SharedArray((1,), ti.f32)
            ti.atomic_add(shared[0], x[i])

    @ti.kernel
    def subgroup_operation(x: array_of(ti.i32)):
        for i in range(SIZE):
            x[i] = ti.simt.subgroup.group_size()

    return locals() | {"too_many_buffers": _too_many_buffers()}


def _too_many_buffers():
    a = array_of(ti.f32)

    @ti.kernel
    def sum_of_30(
        y: a, a0: a, a1: a, a2: a, a3: a, a4: a, a5: a, a6: a, a7: a, a8: a, a9: a, b0: a, b1: a, b2: a, b3: a, b4: a,
        b5: a, b6: a, b7: a, b8: a, b9: a, c0: a, c1: a, c2: a, c3: a, c4: a, c5: a, c6: a, c7: a, c8: a, c9: a,
    ):  # fmt: skip
        for i in range(SIZE):
            y[i] = a0[i] + a1[i] + a2[i] + a3[i] + a4[i] + a5[i] + a6[i] + a7[i] + a8[i] + a9[i]
            y[i] += b0[i] + b1[i] + b2[i] + b3[i] + b4[i] + b5[i] + b6[i] + b7[i] + b8[i] + b9[i]
            y[i] += c0[i] + c1[i] + c2[i] + c3[i] + c4[i] + c5[i] + c6[i] + c7[i] + c8[i] + c9[i]

    return sum_of_30
