"""A matrix's products on GPUs, whatever its scheme and layout."""

from spqt_ti.errors import QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats.scheme import Scheme
from spqt_ti.kernels.simt.matmul import make_zigzag_matmul, zigzag_matmul_threads
from spqt_ti.kernels.simt.row_matmul import make_row_matmul, row_matmul_threads
from spqt_ti.kernels.simt.row_words import RowWords
from spqt_ti.kernels.simt.zigzag import ZigzagWords

Words = ZigzagWords | RowWords


def words_of(rows: int, cols: int, scheme: Scheme, layout: str) -> Words:
    """A matrix in the words that kernels read. QuantizationError for an unknown layout."""
    if layout not in layouts.LAYOUTS:
        raise QuantizationError(f"unknown layout {layout!r}; there are: {', '.join(layouts.LAYOUTS)}")
    return (RowWords if layout == "row" else ZigzagWords)(rows, cols, scheme)


def make_matmul(shape: Words, tokens: int):
    """Build the ti.func of the product for many tokens (see `make_zigzag_matmul`)."""
    return make_row_matmul(shape, tokens) if isinstance(shape, RowWords) else make_zigzag_matmul(shape, tokens)


def matmul_threads(shape: Words, tokens: int) -> int:
    """Threads of a product for up to `tokens`."""
    if isinstance(shape, RowWords):
        return row_matmul_threads(shape, tokens)
    return zigzag_matmul_threads(shape, tokens)
