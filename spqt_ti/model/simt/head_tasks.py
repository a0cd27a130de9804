"""The head as tasks of a kernel: of tiles one, which multiplies and scores; of another matrix its GEMV, then the scores
of its rows.
"""

from dataclasses import dataclass
from typing import Any

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.active_list import ActiveList
from spqt_ti.kernels.simt.groups import log2
from spqt_ti.kernels.simt.head import THREADS, Tiles, make_best_token, make_score_rows, make_score_tile
from spqt_ti.kernels.simt.products import make_product
from spqt_ti.kernels.simt.schemes.decoder import Matrix, words4
from spqt_ti.model.simt.weights import MatrixMap, WeightMap

_THREADS_LOG2 = log2(THREADS)


@dataclass(frozen=True)
class HeadTasks:
    """`element`: of the head's two arrays (`WeightMap.head_arrays`).

    `multiply`, a ti.func (i, both arrays, a, x, integers) of `product_threads` threads (0: there is no such task) in
    groups of `product_group`; `score`, a ti.func (i, both arrays, a, x, logits, best) of `score_threads` threads in
    groups of head.THREADS; `best_token`, a ti.func (best, t) of one such group.
    """

    element: Any
    multiply: Any
    product_threads: int
    product_group: int
    score: Any
    score_threads: int
    best_token: Any


def make_head_tasks(weight_map: WeightMap, partial: int) -> HeadTasks:
    """Build them for a model; `partial`: the offset of a GEMV's partial sums in the f32 array."""
    if weight_map.head is None:
        return _of_tiles(weight_map)
    return _of_matrix(weight_map.head, partial)


def _of_tiles(weight_map: WeightMap) -> HeadTasks:
    config = weight_map.config
    score_tile = make_score_tile(config.hidden_size, config.vocab_size)

    @ti.func
    def score(
        i, words: ti.template(), scales: ti.template(), a: ti.template(), x, logits: ti.template(), best: ti.template()
    ):  # fmt: skip
        tiles = ti.static(Tiles(words, scales, weight_map.head_tile))
        score_tile(tiles, i >> _THREADS_LOG2, a, x, logits, best, i & (THREADS - 1))

    best_token = make_best_token(config.vocab_size, weight_map.tiles)
    return HeadTasks(ti.u32, None, 0, THREADS, score, weight_map.tiles * THREADS, best_token)


def _of_matrix(matrix_map: MatrixMap, partial: int) -> HeadTasks:
    rows = matrix_map.shape.rows
    product = make_product(matrix_map.shape, matrix_map.division, matrix_map.segments)
    multiply_all, score_rows = product.multiply, make_score_rows(rows, product.row_of)
    groups = -(-rows // THREADS)

    @ti.func
    def multiply(i, quants: ti.template(), headers: ti.template(), a: ti.template(), x, integers: ti.template()):
        matrix = ti.static(Matrix(quants, matrix_map.quants, headers, matrix_map.headers))
        every_input = ti.static(ActiveList(integers, 0, 0))
        multiply_all(i, matrix, a, x, every_input, 0, partial)

    @ti.func
    def score(
        i, quants: ti.template(), headers: ti.template(), a: ti.template(), x, logits: ti.template(),
        best: ti.template(),
    ):  # fmt: skip
        score_rows(i >> _THREADS_LOG2, a, partial, logits, best, i & (THREADS - 1))

    best_token = make_best_token(rows, groups)
    return HeadTasks(words4, multiply, product.threads, product.group, score, groups * THREADS, best_token)
