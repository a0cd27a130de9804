"""What does not fit a device is refused before anything is uploaded, with sizes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import tiny_containers

from spqt_ti import backend
from spqt_ti.errors import BackendError
from spqt_ti.kernels.simt import transfer
from spqt_ti.model.simt import arrays
from spqt_ti.model.simt.arrays import ModelArrays

pytestmark = pytest.mark.threadgroups


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"memory": 1_000_000}, r"gqa.*: \d\.\d\d GB do not fit the 0\.00 GB of"),
        ({"max_array_bytes": 100_000}, r"gqa.*: .* take \d\.\d\d GB, more than one array can have on"),
        ({"max_group": 256}, "kernels need 512 threads in a group, and it has 256"),
        ({"shared_memory": 16 << 10}, "kernels need 20480 bytes of shared memory, and it has 16384"),
        ({"max_arrays_per_task": 4}, "kernels need 6 arrays, and it has 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refused(
    backend_name: str, limits: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    runtime = backend.start(backend_name)
    small = dataclasses.replace(runtime.capabilities, **limits)
    monkeypatch.setattr(backend, "_runtime", dataclasses.replace(runtime, capabilities=small))
    for name in ("upload", "zeros"):
        assert getattr(arrays, name) is getattr(transfer, name)
        monkeypatch.setattr(arrays, name, lambda *_: pytest.fail("something was uploaded"))
    with pytest.raises(BackendError, match=message):
        ModelArrays(tiny_containers.container("gqa"), 64)
