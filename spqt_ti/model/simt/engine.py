"""A model on groups of threads: a GPU."""

from __future__ import annotations

from collections.abc import Mapping

from spqt_ti.container import Container
from spqt_ti.model.dispatch import Choice
from spqt_ti.model.engine import Engine
from spqt_ti.model.simt.arrays import ModelArrays
from spqt_ti.model.simt.decode import SimtDecode
from spqt_ti.model.simt.prefill import SimtPrefill
from spqt_ti.model.simt.weights import traffic


def build(container: Container, context: int, choices: Mapping[str, Choice]) -> Engine:
    """The engine of a zigzag container for `context` positions.

    Raises BackendError, before anything is uploaded, when the device cannot hold the model or run the kernels.
    """
    splits = {site: choice.split for site, choice in choices.items() if choice.split is not None}
    arrays = ModelArrays(container, context, splits)
    return Engine(arrays.gates, SimtDecode(arrays), SimtPrefill(arrays), traffic(container.config))
