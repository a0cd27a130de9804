"""Make q4_k_golden.npz with ggml's own quantisers, through the `libgguf` wheel (0.2.2).

    pip install libgguf && python tests/data/make_q4_k_golden.py

Superblocks of several distributions as f32 [n, 256], their Q4_K bytes u8 [n, 144], and their Q8_0 bytes u8 [8 * n, 34].
"""

from pathlib import Path

import libgguf
import numpy as np

SUPERBLOCKS = 6  # of each distribution


def distributions(rng: np.random.Generator) -> list[np.ndarray]:
    """Superblocks [SUPERBLOCKS, 8, 32] each: ordinary weights, and what makes the search take its rarer turns."""
    shape, per_sub_block, per_superblock = (SUPERBLOCKS, 8, 32), (SUPERBLOCKS, 8, 1), (SUPERBLOCKS, 1, 1)
    normal = rng.standard_normal(shape)
    return [
        0.05 * normal,
        rng.uniform(0.1, 1, shape),
        -rng.uniform(0.5, 1, shape),
        rng.standard_t(2, shape),
        np.where(rng.random(shape) < 0.05, normal, 0),
        np.round(normal * 2),
        np.broadcast_to(rng.standard_normal(per_sub_block), shape),
        rng.standard_normal(per_sub_block) + 1e-4 * normal,
        normal * 10.0 ** rng.uniform(-6, 3, per_sub_block),
        normal * 10.0 ** rng.uniform(-44, -30, per_sub_block),
        normal * 10.0 ** rng.uniform(4, 5.9, per_superblock),
    ]


def main() -> None:
    superblocks = distributions(np.random.default_rng(20240607))
    values = np.concatenate(superblocks).reshape(-1, 256).astype(np.float32)
    types = libgguf.GGMLQuantizationType
    np.savez_compressed(
        Path(__file__).with_name("q4_k_golden.npz"),
        values=values,
        q4_k=libgguf.quantize_rows(values, types.Q4_K),
        q8_0=libgguf.quantize_rows(values.reshape(-1, 32), types.Q8_0),
    )


if __name__ == "__main__":
    main()
