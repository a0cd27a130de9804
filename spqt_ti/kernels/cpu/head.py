"""The vocabulary matrix in Q8_0: one row of it is a token's embedding, all of it times the last hidden state are the
logits.

Kernels read tiles of 64 rows: word (tile, column, lane) holds rows lane, 16 + lane, 32 + lane, 48 + lane of the tile,
as bytes q + 128; a scale per row and 32 columns lies beside. Decode reads all of it for every token, so Q8_0 (8.5
bits per weight, relative error 0.5 %) rather than f16 saves a quarter of SmolLM2-135M's traffic; it is also what GGUF
files carry.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.multiply_add import make_multiply_add
from spqt_ti.kernels.cpu.vectors import f32x16, value


def make_tile_sums():
    """Build the ti.func that adds the products of the 64 rows of a tile with some blocks of 32 columns to four vectors.

    Arguments: words and scales, and the first vector of the tile in each; the blocks first..last-1; x, an array and its
    first vector; the four sums.
    """
    multiply_add, _ = make_multiply_add()

    @ti.func
    def add_blocks(
        words: ti.template(), words_at, scales: ti.template(), scales_at, first, last, x: ti.template(), x_base,
        totals: ti.template(),
    ):  # fmt: skip
        for block in range(first, last):
            sums = [f32x16(0.0) for _ in ti.static(range(4))]
            x_sum = 0.0
            for j in range(32):
                xj = value(x, x_base * 16 + block * 32 + j)
                x_sum += xj
                w = words[words_at + block * 32 + j]
                for b in ti.static(range(3)):
                    multiply_add(sums[b], (w & (255 << (8 * b))) * 1.0, f32x16(xj))
                multiply_add(sums[3], (w >> 24) * 1.0, f32x16(xj))
            for b in ti.static(range(4)):
                exact = sums[b] * ti.static(2.0 ** (-8 * b) if b < 3 else 1.0) - 128.0 * x_sum
                totals[b] += exact * scales[scales_at + block * 4 + b]

    return add_blocks


def make_head(cols: int, factor: float = 1.0):
    """Build the ti.funcs `logits_tile` and `embed` for a vocabulary matrix of `cols` (a multiple of 32) columns, of
    which embeddings are `factor` times the rows.
    """
    add_blocks = make_tile_sums()
    blocks = cols // 32

    @ti.func
    def logits_tile(
        words: ti.template(), scales: ti.template(), tile, x: ti.template(), x_base, out: ti.template(), entry
    ):
        """Logits of the 64 rows of `tile` for the vector that begins at vector x[x_base]; writes 4 vectors at
        out[entry].
        """
        totals = [f32x16(0.0) for _ in ti.static(range(4))]
        add_blocks(words, tile * cols, scales, tile * blocks * 4, 0, blocks, x, x_base, totals)
        for b in ti.static(range(4)):
            out[entry + b] = totals[b]

    @ti.func
    def embed(words: ti.template(), scales: ti.template(), row, vector):
        """Values 16 vector .. 16 vector + 15 of row `row`."""
        tile = row >> 6
        lane = row & 15
        part = (row >> 4) & 3
        scale = ti.cast(scales[(tile * blocks + (vector >> 1)) * 4 + part][lane], ti.f32)
        if ti.static(factor != 1.0):
            scale *= factor
        q = [
            ti.cast((words[tile * cols + vector * 16 + i][lane] >> (8 * part)) & 255, ti.i32) - 128
            for i in ti.static(range(16))
        ]
        return f32x16(*[scale * q[i] for i in ti.static(range(16))])

    return logits_tile, embed
