"""What a container holds of a model: its matrices, how each is stored, and every tensor that follows from them.

This is the one place that turns a layer and a site into a stored matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from spqt_ti.errors import QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats import q4_k, q8_0
from spqt_ti.formats.scheme import Scheme
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.sites import SITES, Site

__all__ = [
    "CLASSES",
    "DEFAULT_STORAGE",
    "DTYPES",
    "EMBEDDING",
    "HEAD",
    "ExtraTensor",
    "MatrixInfo",
    "Storage",
    "TensorInfo",
    "expected_tensors",
    "matrix_count",
    "matrix_name",
    "plan_matrices",
    "untied_where_unlike",
]

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
CLASSES = (*SITES, "embedding", "head")  # kinds of matrix, for which a scheme and a layout can be chosen

# safetensors' name of a type -> NumPy's.
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "U8": np.dtype("<u1"), "I8": np.dtype("<i1"),
    "I32": np.dtype("<i4"), "U32": np.dtype("<u4"), "I64": np.dtype("<i8"),
}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """How a matrix is stored."""

    scheme: Scheme
    layout: str

    def __str__(self) -> str:
        return f"{self.scheme}, {self.layout}"


DEFAULT_STORAGE: dict[str, Storage] = {
    **{site: Storage(q4_k.SCHEME, "zigzag") for site in SITES},
    "embedding": Storage(q8_0.SCHEME, "row"),
    "head": Storage(q8_0.SCHEME, "row"),
}


@dataclass(frozen=True)
class MatrixInfo:
    """A stored matrix [rows, cols] (outputs, inputs): projections that share an input, stacked in the order of `parts`
    (projection -> its rows). Embedding and head are [vocabulary, hidden].
    """

    name: str
    parts: Mapping[str, int]
    rows: int
    cols: int
    scheme: Scheme = field(default=q4_k.SCHEME)
    layout: str = "zigzag"

    @property
    def tensor(self) -> str:
        """Name of the tensor that holds its bytes."""
        return f"{self.name}.{self.scheme}"

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return layouts.nbytes(self.rows, self.cols, self.layout, self.scheme)

    @property
    def storage(self) -> Storage:
        """Scheme and layout."""
        return Storage(self.scheme, self.layout)

    def projections(self) -> dict[str, slice]:
        """Full name (`model.layers.0.self_attn.q_proj`) -> rows of this matrix, in order."""
        prefix, start, found = self.name[: self.name.rfind(".") + 1], 0, {}
        for part, rows in self.parts.items():
            found[prefix + part] = slice(start, start + rows)
            start += rows
        return found

    def to_dict(self) -> dict[str, Any]:
        """As it stands in `spqt.json`."""
        return {
            "name": self.name, "parts": dict(self.parts), "rows": self.rows, "cols": self.cols,
            "scheme": self.scheme.name, "layout": self.layout,
        }  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of a stored tensor."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return self.dtype.itemsize * math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class ExtraTensor:
    """A tensor that not every model has: factors of a predictor, a bias that a transformation makes, constants of a
    site. `required`: a program that does not know the role must not run the model without it.
    """

    name: str
    info: TensorInfo
    role: str
    required: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As it stands in `spqt.json`."""
        dtype = next(name for name, dtype in DTYPES.items() if dtype == self.info.dtype)
        return {
            "name": self.name, "dtype": dtype, "shape": list(self.info.shape), "role": self.role,
            "required": self.required,
        }  # fmt: skip


def matrix_name(layer: int, site: Site) -> str:
    """Name of the matrix that reads a site's inputs, "model.layers.0.self_attn.qkv_proj"."""
    return f"model.layers.{layer}.{site.module}"


def matrix_count(config: ModelConfig) -> int:
    """How many matrices `plan_matrices` gives."""
    return len(Site) * config.num_hidden_layers + (1 if config.tie_word_embeddings else 2)


def plan_matrices(config: ModelConfig, storage: Mapping[str, Storage] | None = None) -> dict[str, MatrixInfo]:
    """Name -> every matrix of a model, in the order in which a forward pass uses them; without a head if it is tied.

    `storage`: by class (one of CLASSES) or by a matrix's own name, which goes first; DEFAULT_STORAGE for the rest.
    Raises QuantizationError for a layout that there is not.
    """
    chosen = {**DEFAULT_STORAGE, **(storage or {})}
    shapes = config.tensor_shapes()

    def matrix(name: str, kind: str, prefix: str, projections: Iterable[str]) -> MatrixInfo:
        parts = {part: shapes[f"{prefix}{part}.weight"][0] for part in projections}
        cols = shapes[f"{prefix}{next(iter(parts))}.weight"][1]
        how = chosen.get(name, chosen[kind])
        if how.layout not in layouts.LAYOUTS:
            raise QuantizationError(f"unknown layout {how.layout!r}; there are: {', '.join(layouts.LAYOUTS)}")
        return MatrixInfo(name, parts, sum(parts.values()), cols, how.scheme, how.layout)

    found = [matrix(EMBEDDING, "embedding", "model.", ("embed_tokens",))]
    for layer in range(config.num_hidden_layers):
        for site in Site:
            name = matrix_name(layer, site)
            found.append(matrix(name, site.label, name[: name.rfind(".") + 1], site.projections))
    if not config.tie_word_embeddings:
        found.append(matrix(HEAD, "head", "", (HEAD,)))
    return {info.name: info for info in found}


def untied_where_unlike(config: ModelConfig, storage: Mapping[str, Storage]) -> ModelConfig:
    """The configuration of a model stored like this: a head that is not stored as the embedding is cannot be tied."""
    chosen = {**DEFAULT_STORAGE, **storage}
    head, embedding = chosen.get(HEAD, chosen["head"]), chosen.get(EMBEDDING, chosen["embedding"])
    return config if head == embedding else replace(config, tie_word_embeddings=False)


def expected_tensors(
    config: ModelConfig, matrices: Mapping[str, MatrixInfo], extra: Iterable[ExtraTensor] = ()
) -> dict[str, TensorInfo]:
    """Name -> type and shape of every tensor that a container of this model holds, and of no other.

    Biases of stacked projections are stacked as well; what is neither matrix nor such a bias keeps its own name.
    """
    owners = {part: matrix for matrix in matrices.values() for part in matrix.projections()}
    tensors = {matrix.tensor: _matrix_tensor(matrix) for matrix in matrices.values()}
    for name, shape in config.tensor_shapes().items():
        stem, _, kind = name.rpartition(".")
        if stem not in owners:
            tensors[name] = TensorInfo(DTYPES["F32"], shape)
        elif kind == "bias":
            tensors[f"{owners[stem].name}.bias"] = TensorInfo(DTYPES["F32"], (owners[stem].rows,))
    return tensors | {tensor.name: tensor.info for tensor in extra}


def _matrix_tensor(matrix: MatrixInfo) -> TensorInfo:
    """Flat bytes; of embedding and head in row layout [vocabulary, superblocks, bytes]."""
    if matrix.name in (EMBEDDING, HEAD) and matrix.layout == "row":
        superblocks = -(-matrix.cols // matrix.scheme.values)
        return TensorInfo(DTYPES["U8"], (matrix.rows, superblocks, matrix.scheme.bytes))
    return TensorInfo(DTYPES["U8"], (matrix.nbytes,))
