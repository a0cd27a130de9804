"""Studies without a runner, for executors: worker processes import this module by its name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spqt_ti.container import Container
from spqt_ti.errors import PolicyError
from spqt_ti.model.sites import Site


class Sums:
    """Sums of a row of the first layer's matrices under a mask; slow enough that something can happen meanwhile.

    `settings`: "seconds" per item, and "log", a folder that gets a file per evaluation.
    """

    def __init__(self, container: Container, settings: Mapping[str, Any]) -> None:
        self._matrices = [container.dequantize(container.matrix(0, site)) for site in Site]
        self._settings = settings

    def __call__(self, item: Any) -> np.ndarray:
        time.sleep(self._settings["seconds"])
        (Path(self._settings["log"]) / f"{item}-{os.getpid()}-{time.monotonic_ns()}").touch()
        mask = np.random.default_rng(item).standard_normal
        return np.array([np.sum(w[item] * mask(w.shape[1])) for w in self._matrices])


class Fails:
    """Raises what studies raise."""

    def __init__(self, container: Container, settings: Mapping[str, Any]) -> None:
        del container, settings

    def __call__(self, item: Any) -> np.ndarray:
        raise PolicyError(f"item {item} is no good")


class Dies:
    """Kills its process, once where `settings` name a file that is not there yet."""

    def __init__(self, container: Container, settings: Mapping[str, Any]) -> None:
        del container
        self._once = settings.get("once")

    def __call__(self, item: Any) -> np.ndarray:
        if self._once is None or not Path(self._once).exists():
            if self._once is not None:
                Path(self._once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return np.array([float(item)])
