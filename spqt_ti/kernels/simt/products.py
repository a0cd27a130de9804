"""A matrix's products on GPUs, whatever its scheme and layout."""

from dataclasses import dataclass
from typing import Any

from spqt_ti.backend import ti
from spqt_ti.errors import QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats.scheme import Scheme
from spqt_ti.kernels.simt import gemv, row_gemv
from spqt_ti.kernels.simt.active_list import Segments, make_list_reader
from spqt_ti.kernels.simt.collect import Inputs, Rule
from spqt_ti.kernels.simt.division import Division, default_division
from spqt_ti.kernels.simt.groups import SHARED
from spqt_ti.kernels.simt.matmul import make_zigzag_matmul, zigzag_matmul_threads
from spqt_ti.kernels.simt.row_matmul import make_row_matmul, row_matmul_threads
from spqt_ti.kernels.simt.row_words import ROWS, RowWords
from spqt_ti.kernels.simt.zigzag import ZigzagWords

Words = ZigzagWords | RowWords


def words_of(rows: int, cols: int, scheme: Scheme, layout: str) -> Words:
    """A matrix in the words that kernels read. QuantizationError for an unknown layout."""
    if layout not in layouts.LAYOUTS:
        raise QuantizationError(f"unknown layout {layout!r}; there are: {', '.join(layouts.LAYOUTS)}")
    return (RowWords if layout == "row" else ZigzagWords)(rows, cols, scheme)


def division_of(shape: Words, division: Division | None = None) -> Division:
    """How a matrix's GEMV is shared out: a row-layout one always in groups of four rows, a zigzag one by `division`,
    by default `default_division`.
    """
    if isinstance(shape, RowWords):
        return Division(1, ROWS)
    return division or default_division(shape.bands, shape.cols)


def partial_size(shape: Words, division: Division) -> int:
    """Entries of a GEMV's partial sums."""
    return division.groups * shape.padded_rows


@dataclass(frozen=True)
class Product:
    """A GEMV as a task of `threads` threads in groups of `group`, and how whoever needs y finds it.

    `multiply`, a ti.func (i, matrix, a, x, active, listed, partial): thread i's part of W a[x:], over the active list,
    or over all inputs where `listed` is 0. Partial sums go to a[partial:]; returns the number of active inputs.
    `needs_zeros`: every input is multiplied, and those that are not active must be zero.
    `row_of`, a ti.func (a, partial, row): an entry of y.
    """

    multiply: Any
    needs_zeros: bool
    row_of: Any
    threads: int
    group: int


def make_product(shape: Words, division: Division, segments: Segments) -> Product:
    """Build the GEMV of a matrix whose active lists come in these segments; `division` as of `division_of`."""
    if isinstance(shape, RowWords):
        multiply, threads = _make_row_multiply(shape, segments), row_gemv.row_gemv_threads(shape)
        return Product(multiply, True, _row_of_one, threads, row_gemv.THREADS)
    threads = gemv.group_count(shape, division) * division.threads
    multiply = _make_zigzag_multiply(shape, division, segments)
    return Product(multiply, False, gemv.make_sum_of_groups(shape, division), threads, division.threads)


def make_matmul(shape: Words, tokens: int):
    """Build the ti.func of the product for many tokens (see `make_zigzag_matmul`)."""
    return make_row_matmul(shape, tokens) if isinstance(shape, RowWords) else make_zigzag_matmul(shape, tokens)


def matmul_threads(shape: Words, tokens: int) -> int:
    """Threads of a product for up to `tokens`."""
    if isinstance(shape, RowWords):
        return row_matmul_threads(shape, tokens)
    return zigzag_matmul_threads(shape, tokens)


@ti.func
def _row_of_one(a: ti.template(), partial, row):
    return a[partial + row]


def _make_zigzag_multiply(shape: ZigzagWords, division: Division, segments: Segments):
    multiply_columns = gemv.make_gemv(shape, division, segments)

    @ti.func
    def multiply(i, matrix: ti.template(), a: ti.template(), x, active: ti.template(), listed, partial):
        return multiply_columns(i, matrix, a, x, active, listed, 0.0, partial)

    return multiply


def _make_row_multiply(shape: RowWords, segments: Segments):
    """The list only says how many inputs are active."""
    multiply_row, cols = row_gemv.make_row_gemv(shape, skips=False), shape.cols
    sum_lengths, _, _ = make_list_reader(segments, row_gemv.THREADS)

    @ti.func
    def multiply(i, matrix: ti.template(), a: ti.template(), x, active: ti.template(), listed, partial):
        starts = ti.simt.block.SharedArray((SHARED,), ti.i32)
        count = 0 + cols
        if listed:  # the same for all groups
            count = sum_lengths(active, starts, i & (row_gemv.THREADS - 1))
        multiply_row(i, matrix, ti.static(Inputs(a, x)), a, partial, ti.static(Rule(0.0, a, 0, False)))
        return count

    return multiply
