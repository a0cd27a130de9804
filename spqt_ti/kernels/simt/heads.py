"""What happens to a head of q or k between its product and attention, as pairs of entries d and d + head_dim / 2."""

from dataclasses import dataclass

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.groups import SHARED, group_sum
from spqt_ti.kernels.simt.pointwise import rotated


@dataclass(frozen=True)
class HeadConstants:
    """First values, in the f32 array, of what heads need: the RoPE table, and the first layer's weights of the norms of
    q and k and its window, which are `stride` values apart from the next layer's; None where a model has no such thing.
    """

    rope: int
    stride: int
    eps: float  # of those norms
    q_norm: int | None = None
    k_norm: int | None = None
    window: int | None = None


def make_place_pair(head_dim: int, offsets: HeadConstants):
    """Build the ti.func that normalises, where the model does that, and rotates a pair of a head of q or k.

    Arguments: the f32 array; both values; d; layer; position; whether it is q; the norm's factor for the head (see
    `inverse_size`), which a model without such norms does not use. Returns both values.
    """
    half, normalised = head_dim // 2, offsets.q_norm is not None

    @ti.func
    def place_pair(a: ti.template(), low, high, d, layer, position, is_query, factor):
        if ti.static(normalised):
            weight = layer * offsets.stride + ti.select(is_query, offsets.q_norm, offsets.k_norm) + d
            low *= factor * a[weight]
            high *= factor * a[weight + half]
        angle = offsets.rope + position * head_dim + d
        return rotated(low, high, a[angle], a[angle + half])

    return place_pair


def make_inverse_size(head_dim: int, offsets: HeadConstants):
    """Build the ti.func of a norm's factor, from the sum of a head's squares."""

    @ti.func
    def inverse_size(squares):
        return 1.0 / ti.sqrt(squares / head_dim + offsets.eps)

    return inverse_size


def make_place_own(head_dim: int, threads: int, offsets: HeadConstants):
    """Build the ti.func by which a group of `threads` normalises and rotates q and k in shared `own` (q, k and v, see
    attention.py), which its threads have written and have not met at a barrier since.
    """
    half = head_dim // 2
    place_pair, inverse_size = make_place_pair(head_dim, offsets), make_inverse_size(head_dim, offsets)

    @ti.func
    def place_own(a: ti.template(), own: ti.template(), layer, position, t):
        shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
        ti.simt.block.sync()
        q, k = 0.0, 0.0
        if t < head_dim:
            q = own[t]
            k = own[head_dim + t]
        query_factor = inverse_size(group_sum(shared, t, q * q, threads))
        key_factor = inverse_size(group_sum(shared, t, k * k, threads))
        pair = t
        while pair < 2 * half:
            part = pair // half
            d = pair - part * half
            at = part * head_dim + d
            factor = ti.select(part == 0, query_factor, key_factor)
            low, high = place_pair(a, own[at], own[at + half], d, layer, position, part == 0, factor)
            own[at] = low
            own[at + half] = high
            pair += threads

    return place_own


def make_first_seen(offsets: HeadConstants):
    """Build the ti.func of the first position that a token at `position` attends to in a layer."""
    windowed = offsets.window is not None

    @ti.func
    def first_seen(a: ti.template(), layer, position):
        first = 0
        if ti.static(windowed):
            first = ti.max(0, position + 1 - ti.cast(a[layer * offsets.stride + offsets.window], ti.i32))
        return first

    return first_seen
