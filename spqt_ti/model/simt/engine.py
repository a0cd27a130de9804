"""A model on groups of threads: a GPU."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from spqt_ti.backend import processors
from spqt_ti.container import Container
from spqt_ti.kernels.simt.division import Division, default_division
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.engine import Engine, EngineKind
from spqt_ti.model.simt.arrays import ModelArrays
from spqt_ti.model.simt.cache import SimtCache
from spqt_ti.model.simt.decode import SimtDecode
from spqt_ti.model.simt.neurons import SimtNeurons
from spqt_ti.model.simt.prefill import SimtPrefill
from spqt_ti.model.simt.weights import segments_of
from spqt_ti.model.simt.weights import traffic as traffic_of
from spqt_ti.model.sites import matrix_shapes

_log = logging.getLogger(__name__)


def build(container: Container, context: int, divisions: Mapping[str, str | None], workers: int, exact: bool) -> Engine:
    """See `engine.Build`. Refused is storage that is not alike in all layers, and the embedding unless it is Q8_0 rows;
    everything before anything is uploaded. Always in f32.
    """
    parsed = {site: Division.parse(division) for site, division in divisions.items() if division is not None}
    arrays = ModelArrays(container, context, parsed)
    cache = SimtCache(arrays.cache_shape, arrays.cache)
    decode, prefill = SimtDecode(arrays), SimtPrefill(arrays)
    traffic = arrays.weight_map.traffic()
    neurons = SimtNeurons(arrays, decode, prefill, traffic)
    return Engine(arrays.selectors, decode, prefill, traffic, cache, neurons)


def divide(config: ModelConfig, site: str, measured: str | None) -> str:
    """See `EngineKind`. The list of a site may have more segments than the one measured; where a division cannot add
    them up, the default is taken, which is said in the log.
    """
    shape, segments = matrix_shapes(config)[site], segments_of(config, site).padded
    if measured is not None:
        division = Division.parse(measured)
        if segments <= division.most_segments:
            return measured
        _log.warning(
            "%s: the tuned division %s cannot add up a list of %d segments, so the default is taken",
            site, division, segments,
        )  # fmt: skip
    return str(default_division(shape.bands, shape.cols, processors()))


KIND = EngineKind(build, divide, "division", traffic_of)
