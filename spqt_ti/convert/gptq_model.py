"""GPTQ of a whole model: the source runs over calibration windows layer by layer, and each site's inputs give the H
that its matrix is quantised with.

The source's own inputs count, so one pass serves all layers, and a layer's H is freed before the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from spqt_ti.container.matrices import MatrixInfo, matrix_name
from spqt_ti.convert.finished_layers import FinishedLayers
from spqt_ti.convert.gptq import factored, quantize_columns
from spqt_ti.convert.gptq_rows import check_scheme, quantize_in_rows
from spqt_ti.convert.walk import Inputs, SourceWalk
from spqt_ti.errors import QuantizationError
from spqt_ti.kernels.pack.quantize import quantize_matrix
from spqt_ti.model.sites import Site
from spqt_ti.sources.checkpoint import Checkpoint

__all__ = ["DAMPING", "GptqQuantizer", "MatrixQuantizer", "round_to_nearest"]

DAMPING = 0.02  # of the mean diagonal of H; .01 to .1 make no difference on SmolLM2

F32Array = npt.NDArray[np.float32]
F64Array = npt.NDArray[np.float64]
U8Array = npt.NDArray[np.uint8]

# (matrix, its weights f32 [rows, cols]) -> stored bytes u8 [nbytes]; called in the order of a forward pass.
MatrixQuantizer = Callable[[MatrixInfo, F32Array], U8Array]


def round_to_nearest(matrix: MatrixInfo, w: F32Array) -> U8Array:
    """ggml's quantiser, a superblock at a time, whatever the inputs are."""
    return quantize_matrix(w, matrix.layout, matrix.scheme, matrix.name)


class GptqQuantizer:
    """Quantises the matrices of a source's layers by GPTQ, embedding and head to the nearest.

    `windows`: calibration tokens, all of the same length, each from position 0. Every token counts, the first of a
    window too: what attention makes of it is unlike all others, and without it the result is worse than rounding.

    `finished`: layers of an earlier run with the same windows, which are taken from there; others are added to it.

    Raises QuantizationError for windows of different lengths or none, and for a matrix in row layout of a scheme that
    gptq_rows.py does not have.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Sequence[Sequence[int]],
        damping: float = DAMPING,
        finished: FinishedLayers | None = None,
    ) -> None:
        self._walk, self._damping, self._finished = SourceWalk(checkpoint, windows, "GPTQ"), damping, finished
        self._made: list[U8Array] = []  # of the layer at hand, in the order of Site
        self._hessians: dict[Site, F64Array] = {}
        self._hidden = checkpoint.config.hidden_size
        layers = range(checkpoint.config.num_hidden_layers)
        self._places = {matrix_name(layer, site): (layer, site) for layer in layers for site in Site}

    def record(self) -> dict[str, Any]:
        """What a container says of it (see `Manifest.transformations`)."""
        tokens = self._walk.tokens
        return {
            "kind": "gptq", "tokens": int(tokens.size), "window": int(tokens.shape[1]),
            "damping": self._damping, "order": "diagonal",
        }  # fmt: skip

    def __call__(self, matrix: MatrixInfo, w: F32Array) -> U8Array:
        """Stored bytes u8 [nbytes] of a matrix; those of a layer come in the order of SITES, layers ascending."""
        if matrix.name not in self._places:
            return round_to_nearest(matrix, w)
        if matrix.layout == "row":
            check_scheme(matrix.scheme)
        layer, site = self._places[matrix.name]
        if site is Site.QKV:
            self._made = (self._finished.matrices(layer) if self._finished else None) or []
        number = list(Site).index(site)
        if number < len(self._made):
            if self._made[number].size != matrix.nbytes:
                raise QuantizationError(f"{matrix.name}: {self._made[number].size} bytes are kept of {matrix.nbytes}")
            return self._made[number]
        if site is Site.QKV:
            self._enter(layer)
        self._made.append(self._quantized(matrix, w, site))
        if site is Site.DOWN and self._finished:
            self._finished.add(self._made, self._walk.states)
        return self._made[-1]

    def _quantized(self, matrix: MatrixInfo, w: F32Array, site: Site) -> U8Array:
        factor = factored(self._hessians.pop(site), self._damping)
        try:
            if matrix.layout == "row":
                return quantize_in_rows(w, factor, matrix.scheme)
            return quantize_columns(w, factor, matrix.scheme)
        except QuantizationError as error:
            raise QuantizationError(f"{matrix.name}: {error}") from error

    def _enter(self, layer: int) -> None:
        """Run the windows through a layer: H of its four sites."""
        if self._finished and self._finished.count == layer and layer > self._walk.layer:
            self._walk.resume(layer, self._finished.states((*self._walk.tokens.shape, self._hidden)))
        if layer != self._walk.layer:
            raise QuantizationError(f"GPTQ takes the layers in order: {self._walk.layer} and not {layer}")
        self._hessians.clear()
        self._walk.run_layer(_products, self._add)
        for hessian in self._hessians.values():
            hessian /= self._walk.tokens.size

    def _add(self, products: Mapping[Site, F32Array]) -> None:
        for site, product in products.items():
            if site not in self._hessians:
                self._hessians[site] = np.zeros(product.shape, np.float64)
            self._hessians[site] += product


def _products(inputs: Inputs) -> dict[Site, F32Array]:
    """x^T x f32 [cols, cols] of the inputs x of every site."""
    return {site: x.T @ x for site, x in inputs.items()}
