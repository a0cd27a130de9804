"""Matrix shapes that GEMVs are measured on, [rows, cols]."""

from __future__ import annotations

import re

from spqt_ti.errors import GenerationError

Shape = tuple[int, int]

PAPER = [(m, k) for m in (2048, 4096, 8192) for k in (1024, 2048, 4096, 8192, 16384)]  # arXiv 2511.04477, dense kernels


def layer_shapes(hidden: int, intermediate: int, query: int, key_value: int) -> list[Shape]:
    """The four matrices of a Llama layer: stacked q, k, v; o; stacked gate, up; down."""
    return [(query + 2 * key_value, hidden), (hidden, query), (2 * intermediate, hidden), (hidden, intermediate)]


NAMED = {
    "paper": PAPER,
    "smollm2-135m": layer_shapes(576, 1536, 576, 192),
    "llama-3.2-1b": layer_shapes(2048, 8192, 2048, 512),
    "llama-2-7b": layer_shapes(4096, 11008, 4096, 4096),
    "llama-3-8b": layer_shapes(4096, 14336, 4096, 1024),
    "llama-2-13b": layer_shapes(5120, 13824, 5120, 5120),
    "llama-2-70b": layer_shapes(8192, 28672, 8192, 1024),
}


def parse_shapes(text: str) -> list[Shape]:
    """Shapes from a list such as "paper,4096x14336": names of NAMED and ROWSxCOLS, without repetitions.

    Raises GenerationError for anything else.
    """
    shapes: list[Shape] = []
    for part in text.split(","):
        if part in NAMED:
            shapes += NAMED[part]
        elif match := re.fullmatch(r"([1-9]\d{0,6})x([1-9]\d{0,6})", part):
            shapes.append((int(match[1]), int(match[2])))
        else:
            raise GenerationError(f"--shapes: {part!r} is neither ROWSxCOLS nor one of {', '.join(NAMED)}")
    return list(dict.fromkeys(shapes))
