"""Matrices of a GGUF file kept bit for bit: ggml's superblocks are the row layout's, so they need not be made again.

A stacked matrix (q, k and v read the same inputs) has one scheme: it is kept where all its parts have the same type.
Rows of q and k move where the file has them in ggml's RoPE order; no bit of them changes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spqt_ti.container.matrices import EMBEDDING, MatrixInfo, Storage, plan_matrices
from spqt_ti.convert.gptq_model import MatrixQuantizer, round_to_nearest
from spqt_ti.errors import QuantizationError
from spqt_ti.formats.schemes import find
from spqt_ti.model.sites import SITES
from spqt_ti.sources.checkpoint import Checkpoint, Superblocks

__all__ = ["Keeping", "plan_keeping"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keeping:
    """`storage` by matrix for those that are kept, by class for the rest; `kept`: matrix -> stored parts in order."""

    storage: Mapping[str, Storage]
    kept: Mapping[str, list[Superblocks]]

    def quantizer(self, others: MatrixQuantizer = round_to_nearest) -> MatrixQuantizer:
        """Makes the bytes of a matrix: the stored ones, or by `others`."""

        def make(matrix: MatrixInfo, w: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
            parts = self.kept.get(matrix.name)
            if parts is None:
                return others(matrix, w)
            return np.concatenate([part.load().reshape(-1) for part in parts])

        return make


def plan_keeping(checkpoint: Checkpoint, storage: Mapping[str, Storage]) -> Keeping:
    """Keep every matrix that can be; `storage` is for the others, which are counted in the log.

    Raises QuantizationError where a class of layers' matrices is not in row layout, or nothing can be kept.
    """
    for site in SITES:
        if storage[site].layout != "row":
            raise QuantizationError(f"{site}: bytes are kept in the row layout alone, not in {storage[site].layout}")
    kept, chosen, others = {}, dict(storage), []
    for matrix in plan_matrices(checkpoint.config, storage).values():
        parts = [checkpoint.tensors[f"{name}.weight"].superblocks for name in matrix.projections()]
        schemes = {part.scheme for part in parts if part is not None}
        # A token's row of the embedding is read as Q8_0.
        if None in parts or len(schemes) != 1 or (matrix.name == EMBEDDING and schemes != {"q8_0"}):
            others.append(matrix.name)
            continue
        kept[matrix.name] = [part for part in parts if part is not None]
        chosen[matrix.name] = Storage(find(*schemes), "row")
    if not kept:
        raise QuantizationError(
            f"{checkpoint.source}: no matrix can be kept: none is stored in a scheme of this package"
        )
    _log.info("%d of %d matrices are kept bit for bit", len(kept), len(kept) + len(others))
    if others:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        _log.info("quantised again, because their types are mixed or unknown here: %s", shown)
    return Keeping(chosen, kept)
