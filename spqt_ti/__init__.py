"""spqt_ti: Llama models in zigzag Q4_K that skip the weights of inactive inputs while decoding.

import spqt_ti
model = spqt_ti.load("smollm2-135m", sparsity=0.4)
for piece in model.stream("Once upon a time"):
    print(piece, end="", flush=True)
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from spqt_ti.errors import SpqtError

if TYPE_CHECKING:
    from spqt_ti.api import Generation, Model, Piece, load
    from spqt_ti.convert.quantize import quantize
    from spqt_ti.generation.constraint import Constraint
    from spqt_ti.sparsity.policy import SparsityPolicy

__all__ = [
    "Constraint",
    "Generation",
    "Model",
    "Piece",
    "SparsityPolicy",
    "SpqtError",
    "__version__",
    "load",
    "quantize",
]

try:
    __version__ = version("spqt-ti")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0.0.0"

_HOMES = {
    "Constraint": "spqt_ti.generation.constraint",
    "Generation": "spqt_ti.api",
    "Model": "spqt_ti.api",
    "Piece": "spqt_ti.api",
    "load": "spqt_ti.api",
    "quantize": "spqt_ti.convert.quantize",
    "SparsityPolicy": "spqt_ti.sparsity.policy",
}


def __getattr__(name: str) -> Any:
    """Import on first use: starting Taichi takes a second, which `spqt --help` should not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'spqt_ti' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
