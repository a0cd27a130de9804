"""What happens to a head of q or k between its product and attention, as pairs of entries that RoPE turns together."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.groups import SHARED, group_sum
from spqt_ti.kernels.simt.pointwise import rotated


@dataclass(frozen=True)
class HeadConstants:
    """First values, in the f32 array, of what heads need: the RoPE tables (of `table` values each), and the first
    layer's weights of the norms of q and k, its window and the number of its RoPE table, which are `stride` values
    apart from the next layer's; None where a model has no such thing. `turned`: entries of a head that RoPE turns, the
    first ones. `whole`: the norms are of all heads together.
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


class Squares(NamedTuple):
    """A thread's part of the sums of squares of q and k, and the head's number among those of q and of k."""

    q: Any
    k: Any
    q_head: Any
    k_head: Any


def make_entries(head_dim: int, turned: int):
    """Build the ti.funcs of the two entries of pair d of a head: of those that RoPE turns, which are the first ones,
    `turned` / 2 apart.
    """
    half, pairs = head_dim // 2, turned // 2

    @ti.func
    def low_entry(d):
        entry = d
        if ti.static(pairs < half):
            entry = ti.select(d < pairs, d, d + pairs)
        return entry

    @ti.func
    def high_entry(d):
        entry = d + half
        if ti.static(pairs < half):
            entry = ti.select(d < pairs, d + pairs, d + half)
        return entry

    return low_entry, high_entry


def make_place_pair(head_dim: int, offsets: HeadConstants):
    """Build the ti.func that normalises, where the model does that, and rotates a pair of a head of q or k.

    Arguments: the f32 array; both values; d; layer; position; whether it is q; the head's number among those of q or of
    k; the norm's factor (see `inverse_size`), which a model without such norms does not use. Returns both values.
    """
    half, normalised = head_dim // 2, offsets.q_norm is not None
    several_tables = offsets.rope_number is not None
    low_entry, high_entry = make_entries(head_dim, offsets.turned)

    @ti.func
    def place_pair(a: ti.template(), low, high, d, layer, position, is_query, head, factor):
        if ti.static(normalised):
            weight = layer * offsets.stride + ti.select(is_query, offsets.q_norm, offsets.k_norm)
            if ti.static(offsets.whole):
                weight += head * head_dim
            low *= factor * a[weight + low_entry(d)]
            high *= factor * a[weight + high_entry(d)]
        angle = offsets.rope + position * head_dim + d
        if ti.static(several_tables):
            angle += ti.cast(a[layer * offsets.stride + offsets.rope_number], ti.i32) * offsets.table
        return rotated(low, high, a[angle], a[angle + half])

    return place_pair


def make_inverse_size(offsets: HeadConstants):
    """Build the ti.func of a norm's factor, from the sum of squares of `count` values."""

    @ti.func
    def inverse_size(squares, count):
        return 1.0 / ti.sqrt(squares / count + offsets.eps)

    return inverse_size


def make_place_own(head_dim: int, threads: int, counts: tuple[int, int], offsets: HeadConstants):
    """Build the ti.func by which a group of `threads` normalises and rotates q and k in shared `own` (q, k and v, see
    attention.py), which its threads have written and have not met at a barrier since. `counts`: values of q and of k
    that are normalised together, whose squares are given where they are more than a head's.
    """
    half = head_dim // 2
    place_pair, inverse_size = make_place_pair(head_dim, offsets), make_inverse_size(offsets)
    low_entry, high_entry = make_entries(head_dim, offsets.turned)

    @ti.func
    def place_own(a: ti.template(), own: ti.template(), layer, position, squares: ti.template(), t):
        shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
        ti.simt.block.sync()
        q, k = squares.q, squares.k
        if ti.static(not offsets.whole):  # noqa: SIM102
            if t < head_dim:
                q = own[t] * own[t]
                k = own[head_dim + t] * own[head_dim + t]
        query_factor = inverse_size(group_sum(shared, t, q, threads), counts[0])
        key_factor = inverse_size(group_sum(shared, t, k, threads), counts[1])
        pair = t
        while pair < 2 * half:
            part = pair // half
            d = pair - part * half
            low_at, high_at = part * head_dim + low_entry(d), part * head_dim + high_entry(d)
            factor = ti.select(part == 0, query_factor, key_factor)
            head = ti.select(part == 0, squares.q_head, squares.k_head)
            low, high = place_pair(a, own[low_at], own[high_at], d, layer, position, part == 0, head, factor)
            own[low_at] = low
            own[high_at] = high
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
