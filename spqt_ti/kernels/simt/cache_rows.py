"""Keys and values of one position, out of the KV cache and back into it."""

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.attention import CacheShape
from spqt_ti.kernels.simt.groups import array_of

_THREADS = 128


def row_size(shape: CacheShape) -> int:
    """Entries of a position: per layer and KV head its key, then its value."""
    return shape.layers * shape.kv_heads * 2 * shape.head_dim


def make_rows(shape: CacheShape):
    """Build the kernels `read(cache, position, row)` and `write(cache, position, row)` for f32 [row_size]."""
    size, head_dim, context, half = row_size(shape), shape.head_dim, shape.context, shape.half_stride
    grid = -(-size // _THREADS) * _THREADS

    @ti.func
    def place(i, position):
        head, entry = i // (2 * head_dim), i % (2 * head_dim)
        key = entry * context + position
        value = half + position * head_dim + entry - head_dim
        return head * 2 * half + ti.select(entry < head_dim, key, value)

    @ti.kernel
    def read(cache: array_of(ti.f32), position: ti.i32, row: array_of(ti.f32)):
        ti.loop_config(block_dim=_THREADS)
        for i in range(grid):
            if i < size:
                row[i] = cache[place(i, position)]

    @ti.kernel
    def write(cache: array_of(ti.f32), position: ti.i32, row: array_of(ti.f32)):
        ti.loop_config(block_dim=_THREADS)
        for i in range(grid):
            if i < size:
                cache[place(i, position)] = row[i]

    return read, write
