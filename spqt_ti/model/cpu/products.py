"""The products of a model on the CPU, one ti.func per kind of matrix: of one token, and of the tokens of a chunk.

`d` is the Launch of the kernel that calls. A matrix stands in the site table at integer `at`.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.arguments import Inputs, Matrix, Sums
from spqt_ti.kernels.cpu.gemv import SCRATCH_VECTORS, make_gemv, make_gemv_by_bands
from spqt_ti.kernels.cpu.matmul import make_matmul
from spqt_ti.kernels.cpu.row_gemv import make_row_gemv
from spqt_ti.kernels.cpu.row_layout import X_VECTORS, RowInputs, RowMatrix, row_superblocks
from spqt_ti.kernels.cpu.row_matmul import make_row_matmul
from spqt_ti.kernels.cpu.vectors import f32x16, value
from spqt_ti.model.cpu.maps import ChunkMap, IntegerMap, Scratch
from spqt_ti.model.cpu.matrix_maps import Kind, MatrixMap
from spqt_ti.model.cpu.weights import SiteField, WeightMap
from spqt_ti.model.sites import Site


def make_kept(weights: WeightMap):
    """Build the ti.func (constants, selector, v, i) of vector i of a site's input, v, with zeros for what its
    threshold skips (NaN stays, to be noticed); `selector`: number of layer and site, layer * SITE_COUNT + site.
    """
    selectors, selector_map = weights.selectors, weights.selector_map

    @ti.func
    def kept(constants: ti.template(), selector, v, i):
        result = v
        threshold = value(constants, selectors * 16 + selector)
        if threshold > 0.0:
            score = ti.max(v, 0.0 - v)
            if value(constants, (selectors * 16 + selector_map.weighted) + selector) > 0.0:
                score = score * constants[selectors + selector_map.weights + selector * selector_map.stride + i]
            result = f32x16(*[ti.select(score[k] <= threshold, 0.0, v[k]) for k in ti.static(range(16))])
        return result

    return kept


def multiplied_kinds(weights: WeightMap, predicts: bool) -> list[int]:
    """Numbers of the kinds that need a decode product: all, but for those of gate and up in rows that `predicts` has
    another way for.
    """
    kinds = weights.matrices.kinds
    if not predicts:
        return list(range(len(kinds)))
    others = [layer[site].kind for layer in weights.matrices.sites for site in Site]
    gate_up = [layer[Site.GATE_UP].kind for layer in weights.matrices.sites if layer[Site.GATE_UP].kind.rows]
    for kind in gate_up:
        others.remove(kind)
    return [number for number, kind in enumerate(kinds) if kind in others]


def make_decode_product(kind: Kind, weights: WeightMap, scratch: Scratch, workers: int, exact: bool):
    """Build the ti.func (d, at, selector, x, active, count) of a worker's part of W x, x beginning at vector a[x].

    Zigzag: of the `count` columns listed from integer `active`; the workers' partial sums go to scratch.partial. Rows:
    of all columns; what the threshold at `selector` skips is zero, and whole sums go to scratch.partial.
    """
    if kind.rows:
        return _make_rows_of_token(kind, weights, scratch, workers, exact)
    gemv = make_gemv(workers, exact, kind.decoder)

    @ti.func
    def multiply(d: ti.template(), at, selector, x, active, count):
        cols = d.integers[at + SiteField.COLS]
        quants = d.integers[at + SiteField.QUANTS]
        tail = d.integers[at + SiteField.TAIL]
        headers = d.integers[at + SiteField.HEADERS]
        full_bands = d.integers[at + SiteField.FULL_BANDS]
        tail_bands = d.integers[at + SiteField.TAIL_BANDS]
        panel_bands = d.integers[at + SiteField.PANEL_BANDS]
        gemv_scratch = scratch.gemv + d.worker * SCRATCH_VECTORS
        matrix = ti.static(
            Matrix(
                d.quants, quants, d.tail, tail, d.headers, headers, d.quants_address, d.tail_address,
                d.headers_address, cols, full_bands, tail_bands, panel_bands,
            )
        )  # fmt: skip
        inputs = ti.static(Inputs(d.a, x, d.integers, active, count))
        gemv(matrix, inputs, ti.static(Sums(d.a, scratch.partial, gemv_scratch)), d.workspace, d.worker)

    return multiply


def _make_rows_of_token(kind: Kind, weights: WeightMap, scratch: Scratch, workers: int, exact: bool):
    row_gemv, kept = make_row_gemv(workers, False, False, exact, kind.decoder), make_kept(weights)

    @ti.func
    def multiply(d: ti.template(), at, selector, x, active, count):
        vectors = d.integers[at + SiteField.COLS] >> 4
        superblocks = (vectors + X_VECTORS - 1) // X_VECTORS
        quants = d.integers[at + SiteField.QUANTS]
        headers = d.integers[at + SiteField.HEADERS]
        rows = d.integers[at + SiteField.ROWS]
        masked = scratch.masked + d.worker * scratch.masked_stride
        for i in range(vectors):
            d.a[masked + i] = kept(d.constants, selector, d.a[x + i], i)
        for i in range(vectors, superblocks * X_VECTORS):
            d.a[masked + i] = f32x16(0.0)
        matrix = ti.static(
            RowMatrix(d.quants, quants, d.headers, headers, d.quants_address, d.headers_address, rows, superblocks)
        )
        inputs = ti.static(RowInputs(d.a, masked, 0.0))
        order = scratch.rows + d.worker * scratch.rows_stride
        row_gemv(matrix, inputs, d.a, order, d.a, scratch.partial, d.worker)

    return multiply


def make_head_product(matrix_map: MatrixMap, scratch: Scratch, ints: IntegerMap, workers: int, exact: bool):
    """Build the ti.func (d, x) of a worker's logits, at scratch.logits, of a head that is not made of tiles."""
    shape = matrix_map.shape
    cols, vectors = shape.cols, shape.cols // 16
    if matrix_map.kind.rows:
        row_gemv = make_row_gemv(workers, False, False, exact, matrix_map.kind.decoder)
        superblocks = row_superblocks(cols)

        @ti.func
        def head_rows(d: ti.template(), x):
            masked = scratch.masked + d.worker * scratch.masked_stride
            for i in range(superblocks * X_VECTORS):
                d.a[masked + i] = f32x16(0.0)
                if i < vectors:
                    d.a[masked + i] = d.a[x + i]
            matrix = ti.static(
                RowMatrix(
                    d.quants, matrix_map.quants, d.headers, matrix_map.headers, d.quants_address, d.headers_address,
                    shape.rows, superblocks,
                )
            )  # fmt: skip
            order = scratch.rows + d.worker * scratch.rows_stride
            row_gemv(matrix, ti.static(RowInputs(d.a, masked, 0.0)), d.a, order, d.a, scratch.logits, d.worker)

        return head_rows
    gemv, bands = make_gemv_by_bands(workers, exact, matrix_map.kind.decoder), shape.full_bands

    @ti.func
    def head_bands(d: ti.template(), x):
        matrix = ti.static(
            Matrix(
                d.quants, matrix_map.quants, d.tail, 0, d.headers, matrix_map.headers, d.quants_address, d.tail_address,
                d.headers_address, cols, bands, 0, shape.panel_bands,
            )
        )  # fmt: skip
        inputs = ti.static(Inputs(d.a, x, d.integers, ints.everything, cols))
        gemv_scratch = scratch.gemv + d.worker * SCRATCH_VECTORS
        gemv(matrix, inputs, ti.static(Sums(d.a, scratch.logits, gemv_scratch)), d.workspace, d.worker)

    return head_bands


def make_chunk_product(kind: Kind, chunk: ChunkMap, workers: int, exact: bool, skips_zeros: bool):
    """Build the ti.func (d, at, tokens) of a worker's strips of Y = X W^T for the Tokens in d.a, where `chunk` is its
    map. `exact`: in f32 on every CPU; `skips_zeros`: see make_matmul.
    """
    tiles, tile_stride = chunk.tiles, chunk.tile_stride
    if kind.rows:
        rows_matmul = make_row_matmul(workers, kind.decoder)

        @ti.func
        def multiply_rows(d: ti.template(), at, tokens: ti.template()):
            cols = d.integers[at + SiteField.COLS]
            quants = d.integers[at + SiteField.QUANTS]
            headers = d.integers[at + SiteField.HEADERS]
            rows = d.integers[at + SiteField.ROWS]
            superblocks = (cols + 255) >> 8
            matrix = ti.static(RowMatrix(d.quants, quants, d.headers, headers, None, None, rows, superblocks))
            rows_matmul(matrix, cols, d.a, tiles + d.worker * tile_stride, tokens, d.worker)

        return multiply_rows
    matmul = make_matmul(workers, exact, kind.decoder, skips_zeros)

    @ti.func
    def multiply(d: ti.template(), at, tokens: ti.template()):
        cols = d.integers[at + SiteField.COLS]
        quants = d.integers[at + SiteField.QUANTS]
        tail = d.integers[at + SiteField.TAIL]
        headers = d.integers[at + SiteField.HEADERS]
        full_bands = d.integers[at + SiteField.FULL_BANDS]
        tail_bands = d.integers[at + SiteField.TAIL_BANDS]
        panel_bands = d.integers[at + SiteField.PANEL_BANDS]
        matrix = ti.static(
            Matrix(
                d.quants, quants, d.tail, tail, d.headers, headers, None, None, None, cols, full_bands, tail_bands,
                panel_bands,
            )
        )  # fmt: skip
        matmul(matrix, d.a, tiles + d.worker * tile_stride, tokens, d.worker)

    return multiply


def make_chunk_head(matrix_map: MatrixMap, chunk: ChunkMap, workers: int, exact: bool):
    """Build the ti.func (quants, headers, a, tokens, worker) of a worker's strips of the logits of a head that is not
    made of tiles.
    """
    shape, decoder = matrix_map.shape, matrix_map.kind.decoder
    tiles, tile_stride = chunk.tiles, chunk.tile_stride
    if matrix_map.kind.rows:
        rows_matmul = make_row_matmul(workers, decoder)

        @ti.func
        def score_rows(quants: ti.template(), headers: ti.template(), a: ti.template(), tokens: ti.template(), worker):
            matrix = ti.static(
                RowMatrix(
                    quants, matrix_map.quants, headers, matrix_map.headers, None, None, shape.rows,
                    row_superblocks(shape.cols),
                )
            )  # fmt: skip
            rows_matmul(matrix, shape.cols, a, tiles + worker * tile_stride, tokens, worker)

        return score_rows
    matmul = make_matmul(workers, exact, decoder)

    @ti.func
    def score_bands(quants: ti.template(), headers: ti.template(), a: ti.template(), tokens: ti.template(), worker):
        matrix = ti.static(
            Matrix(
                quants, matrix_map.quants, None, 0, headers, matrix_map.headers, None, None, None, shape.cols,
                shape.full_bands, 0, shape.panel_bands,
            )
        )  # fmt: skip
        matmul(matrix, a, tiles + worker * tile_stride, tokens, worker)

    return score_bands
