"""What a tile of active columns adds to the 256 sums of each of up to four bands: the inner loop of the zigzag GEMV.

The exact one, of every scheme, multiplies in f32. A scheme may bring along a faster one for CPUs with AVX-512 VNNI
or AVX2 (schemes/q4_k_16_bits.py). The sums of a quad are QUAD_VECTORS vectors of scratch: 16 per band, then one per
band of what is subtracted in the end. Their order is the scheme's.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.vectors import value

TILE_COLUMNS = 48  # at most; a multiple of 16
QUAD_BANDS = 4
QUAD_VECTORS = QUAD_BANDS * 16 + 4  # of sums
PAIRS = TILE_COLUMNS // 2
SPARE_VECTORS = TILE_COLUMNS + 2  # scratch: x d or x scale, steps, totals
# A worker's workspace, used by address: addresses to fetch while a quad is computed, the tile's columns, x d scale.
COLUMNS_AT = 8 * (QUAD_BANDS * TILE_COLUMNS + 16)
SCALES_AT = COLUMNS_AT + 8 * TILE_COLUMNS
WORKSPACE_INTEGERS = (SCALES_AT + 64 * TILE_COLUMNS) // 4


def uses_integers(exact: bool) -> bool:
    """True where `make_add_tile` takes a scheme's faster variant, if it has one."""
    return not exact and native.products_by() is not None


@ti.func
def input_of(inputs: ti.template(), j, high):
    """Input of entry j of the active list; zero from entry `high` on, where a tile of columns ends."""
    column = inputs.active[ti.min(j, high - 1)]
    return ti.select(j < high, value(inputs.x, inputs.x_base * 16 + column), 0.0)


def make_add_tile(fetch, exact: bool, decoder):
    """Build the ti.func that adds the active columns low..high-1 (at most TILE_COLUMNS) to the sums of a quad.

    Arguments: a Panel, the quad's first band in it and its number of bands; Inputs; low, high; the quad's Sums, with
    SPARE_VECTORS of scratch; the address of the worker's workspace of WORKSPACE_INTEGERS i32, on a cache line. It
    begins with the addresses of what is needed later: for every superblock, `fetch` is called with the entry of the
    next of them.

    Returns it and the ti.func `write_rows(a, sums_at, band, out)` that turns a band's sums into the rows
    a[out..out+15].
    """
    if uses_integers(exact) and decoder.make_fast_tile is not None:
        return decoder.make_fast_tile(fetch)
    add_superblock = decoder.make_add_superblock()

    @ti.func
    def add_band(
        panel: ti.template(), band, inputs: ti.template(), low, high, a: ti.template(), sums_at, offsets_at, fetches_at
    ):  # fmt: skip
        sums = [a[sums_at + i] for i in ti.static(range(16))]
        offsets = a[offsets_at]
        fetch_at = fetches_at
        for j in range(low, high):
            fetch(fetch_at)
            fetch_at += 8
            column = inputs.active[j]
            entry = column * panel.height + band
            add_superblock(panel, entry, value(inputs.x, inputs.x_base * 16 + column), sums, offsets)
        for i in ti.static(range(16)):
            a[sums_at + i] = sums[i]
        a[offsets_at] = offsets

    @ti.func
    def add_tile(
        panel: ti.template(), first, bands, inputs: ti.template(), low, high, quad: ti.template(), workspace
    ):  # fmt: skip
        for band in range(bands):
            add_band(
                panel, first + band, inputs, low, high, quad.a, quad.sums + 16 * band,
                quad.sums + 16 * QUAD_BANDS + band, workspace + (ti.cast(band * (high - low), ti.i64) << 3),
            )  # fmt: skip

    return add_tile, decoder.make_write_rows()
