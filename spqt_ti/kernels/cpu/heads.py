"""What happens to a head of q, k or v between its product and attention."""

from dataclasses import dataclass

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.attention import CacheShape, make_writers
from spqt_ti.kernels.cpu.norm import scaled_copy, square_sum
from spqt_ti.kernels.cpu.rope import rotate


@dataclass(frozen=True)
class HeadConstants:
    """First vectors, among the constants (f32 x 16), of what heads need: the RoPE table, and within a layer's `stride`
    vectors the weights of the norms of q and k, the layer's window, and the number of its RoPE table (of `table`
    vectors each); None where a model has no such thing. `turned`: entries of a head that RoPE turns. `whole`: the norms
    are of all heads together.
    """

    rope: int
    stride: int
    eps: float  # of those norms
    turned: int
    table: int
    whole: bool = False
    q_norm: int | None = None
    k_norm: int | None = None
    window: int | None = None
    rope_number: int | None = None


def make_place_head(shape: CacheShape, heads: int, offsets: HeadConstants):
    """Build the ti.func that takes a head from its product, bias included, to where attention reads it.

    Arguments: `a` and the vector at which the head begins; constants; cache; layer; the head's number among the `heads`
    of q, those of k and those of v; its position. A head of q or k is normalised where the model does that with each
    alone, and rotated, in place; those of k and v go into the cache.
    """
    head_dim, head_vectors, kv_heads = shape.head_dim, shape.head_dim // 16, shape.kv_heads
    half_stride, normalised = shape.half_stride, offsets.q_norm is not None and not offsets.whole
    several_tables = offsets.rope_number is not None
    write_key, write_value = make_writers(shape)

    @ti.func
    def place_head(a: ti.template(), at, constants: ti.template(), cache: ti.template(), layer, head, position):
        if head < heads + kv_heads:
            if ti.static(normalised):
                weight = layer * offsets.stride + ti.select(head < heads, offsets.q_norm, offsets.k_norm)
                factor = 1.0 / ti.sqrt(square_sum(a, at, at + head_vectors) / head_dim + offsets.eps)
                scaled_copy(a, at, constants, weight, factor, at, head_vectors)
            row = offsets.rope * 16 + position * head_dim
            if ti.static(several_tables):
                number = ti.cast(constants[layer * offsets.stride + offsets.rope_number][0], ti.i32)
                row += number * (offsets.table * 16)
            rotate(a, at * 16, constants, row, head_dim // 2, offsets.turned // 2)
        keys = layer * shape.layer_stride + (head - heads) * 2 * half_stride
        if head >= heads and head < heads + kv_heads:
            write_key(cache, keys, position, a, at * 16)
        if head >= heads + kv_heads:
            write_value(cache, keys - kv_heads * 2 * half_stride + half_stride, position, a, at)

    return place_head


def make_normalise_head(head_dim: int, heads: int, kv_heads: int, offsets: HeadConstants):
    """Build the ti.funcs for norms of all heads together: `factors` of the sums of squares of q and of k, and
    `normalise_head` of the head at vector a[at] by them, which leaves those of v alone.
    """
    head_vectors = head_dim // 16
    q_norm, k_norm = offsets.q_norm or 0, (offsets.k_norm or 0) - heads * head_vectors

    @ti.func
    def factors(q_squares, k_squares):
        q = 1.0 / ti.sqrt(q_squares / (heads * head_dim) + offsets.eps)
        return q, 1.0 / ti.sqrt(k_squares / (kv_heads * head_dim) + offsets.eps)

    @ti.func
    def normalise_head(a: ti.template(), at, constants: ti.template(), layer, head, q_factor, k_factor):
        if head < heads + kv_heads:
            weight = layer * offsets.stride + ti.select(head < heads, q_norm, k_norm) + head * head_vectors
            scaled_copy(a, at, constants, weight, ti.select(head < heads, q_factor, k_factor), at, head_vectors)

    return factors, normalise_head


def make_first_seen(offsets: HeadConstants):
    """Build the ti.func of the first position that a token at `position` attends to in a layer."""
    windowed = offsets.window is not None

    @ti.func
    def first_seen(constants: ti.template(), layer, position):
        first = 0
        if ti.static(windowed):
            window = ti.cast(constants[layer * offsets.stride + offsets.window][0], ti.i32)
            first = ti.max(0, position + 1 - window)
        return first

    return first_seen
