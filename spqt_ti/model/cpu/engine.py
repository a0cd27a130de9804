"""A model on a few workers: the CPU."""

from __future__ import annotations

from collections.abc import Mapping

from spqt_ti.container import Container
from spqt_ti.kernels.cpu.attention import CacheShape
from spqt_ti.model.cpu.cache import WorkerCache
from spqt_ti.model.cpu.decode import DecodeStep
from spqt_ti.model.cpu.gates import WorkerGates
from spqt_ti.model.cpu.prefill import Prefill
from spqt_ti.model.cpu.weights import Weights, traffic
from spqt_ti.model.dispatch import Choice
from spqt_ti.model.engine import Engine


def build(container: Container, context: int, choices: Mapping[str, Choice], workers: int, exact: bool) -> Engine:
    """The engine of a zigzag container for `context` positions (a multiple of 16).

    Raises BackendError when an array would have more words than Taichi can index.
    """
    config = container.config
    weights = Weights(container, context, {site: choice.panel_bands for site, choice in choices.items()})
    shape = CacheShape(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, context, half=not exact)
    cache = WorkerCache(shape)
    gates = WorkerGates(weights)
    decode = DecodeStep(weights, cache.array, shape, workers, exact)
    return Engine(gates, decode, Prefill(weights, cache.array, shape, workers), traffic(config), cache)
