"""A sparse GEMV on own NumPy matrices.

python examples/gemv.py [ROWS] [COLS]
"""

import sys

import numpy as np

from spqt_ti import ops


def main(rows: int = 2048, cols: int = 1024) -> None:
    random = np.random.default_rng(0)
    w = random.standard_normal((rows, cols)).astype(np.float32)
    x = random.standard_normal(cols).astype(np.float32)

    packed = ops.pack(w)  # Q4_K, zigzag: an inactive input's weights are never read
    print(f"{w.nbytes / 1e6:.2f} MB became {packed.data.nbytes / 1e6:.2f}")
    stored = packed.dequantize()

    threshold = float(np.quantile(np.abs(x), 0.5))
    active = np.abs(x) > threshold
    for name, y, expected in (
        ("dense", ops.gemv(packed, x), stored @ x),
        ("half of the inputs", ops.sparse_gemv(packed, x, threshold), stored[:, active] @ x[active]),
        ("dense, in f32", ops.gemv(packed, x, exact=True), stored @ x),
    ):
        print(f"{name}: relative error {np.linalg.norm(y - expected) / np.linalg.norm(expected):.1e}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
