"""The kinds of engine, by what a device is."""

from __future__ import annotations

from spqt_ti.backend.capabilities import Capabilities
from spqt_ti.model.cpu import engine as cpu
from spqt_ti.model.engine import EngineKind
from spqt_ti.model.simt import engine as simt

ENGINES: dict[str, EngineKind] = {"workers": cpu.KIND, "groups": simt.KIND}


def engine_for(capabilities: Capabilities) -> EngineKind:
    """The kind that runs models on such a device."""
    return ENGINES["groups" if capabilities.groups else "workers"]
