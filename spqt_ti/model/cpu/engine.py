"""A model on a few workers: the CPU."""

from __future__ import annotations

from collections.abc import Mapping

from spqt_ti.container import Container
from spqt_ti.kernels.cpu.attention import CacheShape
from spqt_ti.kernels.shared.geometry import MOST_PANEL_BANDS
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.cpu.cache import WorkerCache
from spqt_ti.model.cpu.decode import DecodeStep
from spqt_ti.model.cpu.matrix_maps import traffic
from spqt_ti.model.cpu.neurons import WorkerNeurons
from spqt_ti.model.cpu.prefill import Prefill
from spqt_ti.model.cpu.selectors import WorkerSelectors
from spqt_ti.model.cpu.weights import Weights
from spqt_ti.model.engine import Engine, EngineKind


def build(container: Container, context: int, divisions: Mapping[str, str | None], workers: int, exact: bool) -> Engine:
    """The engine of a container for `context` positions (a multiple of 16).

    Raises BackendError when an array would have more words than Taichi can index, ContainerError for an embedding that
    is not Q8_0 in rows.
    """
    config = container.config
    weights = Weights(container, context, {site: _panel_bands(text) for site, text in divisions.items()})
    shape = CacheShape(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, context, half=not exact)
    cache = WorkerCache(shape)
    selectors = WorkerSelectors(weights)
    decode = DecodeStep(weights, cache.array, shape, workers, exact)
    prefill = Prefill(weights, cache.array, shape, workers, exact)
    read = traffic(config, container.matrices)
    return Engine(selectors, decode, prefill, read, cache, WorkerNeurons(weights, decode, prefill, read))


def divide(config: ModelConfig, site: str, measured: str | None) -> str | None:
    """See `EngineKind`: how many bands are side by side."""
    return None if measured is None else str(_panel_bands(measured))


def _panel_bands(text: str | None) -> int | None:
    if text is not None and text not in map(str, range(1, MOST_PANEL_BANDS + 1)):
        raise ValueError(f"between 1 and {MOST_PANEL_BANDS} bands can be side by side, not {text!r:.40}")
    return None if text is None else int(text)


KIND = EngineKind(build, divide, "bands side by side", traffic)
