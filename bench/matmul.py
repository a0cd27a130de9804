"""Prefill's product of a zigzag Q4_K matrix with the tokens of a chunk: in f32 and in 16 bits, interleaved in one run.

    python bench/matmul.py --shapes 3072x576,576x1536,4096x1024 --tokens 256

One thread. Times are the fastest of the rounds, so that other work on the machine is left out; "products per cycle" are
over the clock that a chain of additions shows in the same run. With `--zeros 0.9` so many of the inputs are zero, each
by itself, and the product that leaves them out is measured beside the others.
"""

import argparse
import functools
import time

import numpy as np

from spqt_ti.backend import address, host_view, ndarray, start, ti
from spqt_ti.benchmark.provenance import provenance
from spqt_ti.benchmark.shapes import Shape, parse_shapes
from spqt_ti.formats import q4_k
from spqt_ti.kernels.cpu.arguments import Matrix
from spqt_ti.kernels.cpu.matmul import make_matmul, scratch_vectors
from spqt_ti.kernels.cpu.schemes.q4_k import DECODER
from spqt_ti.kernels.cpu.tokens import Tokens
from spqt_ti.kernels.cpu.vectors import array_of, f32x16, u32x4, u32x8, u32x16
from spqt_ti.kernels.cpu.zigzag import ZigzagShape, unpack
from spqt_ti.kernels.pack.quantize import quantize_matrix
from spqt_ti.tables import Table, print_table

ADDITIONS = 1 << 20


@ti.kernel
def add_in_turn(out: array_of(ti.i32), count: ti.i32):
    """A chain of xorshift steps, six dependent instructions each: a clock."""
    ti.loop_config(serialize=True)
    for _ in range(1):
        x = out[0]
        for _i in range(count):
            x ^= x << 13
            x ^= x >> 17
            x ^= x << 5
        out[0] = x


@functools.cache
def make_kernel(exact: bool, skips_zeros: bool):
    """Y = X W^T by one worker; `a`: its scratch, X, Y."""
    matmul = make_matmul(1, exact, skips_zeros=skips_zeros)

    @ti.kernel
    def product(
        quants: array_of(u32x16), tail: array_of(u32x8), headers: array_of(u32x4), cols: ti.i32, full_bands: ti.i32,
        tail_bands: ti.i32, panel_bands: ti.i32, a: array_of(f32x16), a_address: ti.i64, x: ti.i32, y: ti.i32,
        y_stride: ti.i32, count: ti.i32,
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=1)
        for worker in range(1):
            at = a_address
            x_stride = cols >> 4
            matrix = ti.static(
                Matrix(quants, 0, tail, 0, headers, 0, None, None, None, cols, full_bands, tail_bands, panel_bands)
            )
            matmul(matrix, a, 0, ti.static(Tokens(x, x_stride, y, y_stride, count, at)), worker)

    return product


def upload(values: np.ndarray, dtype) -> ti.Ndarray:
    array = ndarray(dtype, (max(1, len(values)),))
    host_view(array)[: len(values)] = values
    return array


class Product:
    """The product of a random matrix with `tokens` random tokens, a share of whose values is zero."""

    def __init__(self, shape: Shape, tokens: int, zeros: float, exact: bool, skips_zeros: bool) -> None:
        rows, cols = shape
        zigzag, rng = ZigzagShape(rows, cols, planes=DECODER.planes), np.random.default_rng(0)
        data = quantize_matrix(rng.standard_normal((rows, cols), np.float32), "zigzag", q4_k.SCHEME)
        arrays = [upload(*pair) for pair in zip(unpack(data, zigzag, DECODER), (u32x16, u32x8, u32x4), strict=True)]
        x, y_stride = scratch_vectors(tokens, DECODER, exact), zigzag.padded_rows // 16
        y = x + tokens * cols // 16
        a = ndarray(f32x16, (y + tokens * y_stride,))
        values = rng.standard_normal((y - x, 16), np.float32)
        host_view(a)[x:y] = np.where(rng.random(values.shape) < zeros, 0, values)
        geometry = (cols, zigzag.full_bands, zigzag.tail_bands, zigzag.panel_bands)
        self._arguments = (*arrays, *geometry, a, address(a), x, y, y_stride, tokens)
        self._kernel = make_kernel(exact, skips_zeros)

    def seconds(self) -> float:
        """Of one product."""
        return seconds(self._kernel, *self._arguments)


def seconds(kernel, *arguments) -> float:
    """Of one launch."""
    begin = time.perf_counter()
    kernel(*arguments)
    ti.sync()
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="3072x576,576x1536,4096x1024", help="columns in 16s (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=256, help="in fours (default: %(default)s)")
    parser.add_argument("--zeros", type=float, default=0.0, help="share of the inputs (default: none)")
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    start("cpu", threads=1)
    clock, number = ndarray(ti.i32, (1,)), arguments.tokens
    cells = []
    products = [(True, False), (False, False)] + [(False, True)] * bool(arguments.zeros)
    for shape in parse_shapes(arguments.shapes):
        runs = [Product(shape, number, arguments.zeros, *product).seconds for product in products]
        runs.append(functools.partial(seconds, add_in_turn, clock, ADDITIONS))
        best = np.min([[run() for run in runs] for _ in range(arguments.rounds)], axis=0)
        cycles = best[:2] / best[-1] * 6 * ADDITIONS
        per_cycle = shape[0] * shape[1] * number / cycles
        times = [f"{time * 1e3:.2f}" for time in best[:2]]
        row = [f"{shape[0]}x{shape[1]}", *times, *[f"{n:.0f}" for n in per_cycle], f"{best[0] / best[1]:.2f}x"]
        skipping = [f"{best[2] * 1e3:.2f}", f"{best[1] / best[2]:.2f}x"] if arguments.zeros else []
        cells.append(row + skipping)
    titles = ["rows x cols", "f32, ms", "16 bits, ms", "f32, products per cycle", "16 bits", "16 bits over f32"]
    titles += ["skipping zeros, ms", "over 16 bits"] if arguments.zeros else []
    what = f"Q4_K, {number} tokens, {arguments.zeros:.0%} zeros, fastest of {arguments.rounds} interleaved rounds"
    print_table(Table(titles, cells), what, provenance(1))


if __name__ == "__main__":
    main()
