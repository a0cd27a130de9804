"""A model on groups of threads: a GPU."""

from __future__ import annotations

from collections.abc import Mapping

from spqt_ti.container import Container
from spqt_ti.model.dispatch import Choice
from spqt_ti.model.engine import Engine
from spqt_ti.model.simt.arrays import ModelArrays
from spqt_ti.model.simt.cache import SimtCache
from spqt_ti.model.simt.decode import SimtDecode
from spqt_ti.model.simt.prefill import SimtPrefill


def build(container: Container, context: int, choices: Mapping[str, Choice]) -> Engine:
    """The engine of a container for `context` positions.

    Raises ContainerError for storage that GPUs do not run (see WeightLayout.plan) and BackendError when the device
    cannot hold the model or run the kernels, both before anything is uploaded.
    """
    splits = {site: choice.split for site, choice in choices.items() if choice.split is not None}
    arrays = ModelArrays(container, context, splits)
    cache = SimtCache(arrays.cache_layout, arrays.cache)
    return Engine(arrays.gates, SimtDecode(arrays), SimtPrefill(arrays), arrays.layout.traffic(), cache)
