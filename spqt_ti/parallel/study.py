"""What is evaluated: a class that a process builds once on a container, and then asks item after item.

A request travels as text: the class by name, the model by path and fingerprint, settings and items as JSON. So a worker
opens the container where it is (pages of its files are shared by all processes of a machine), and no model is pickled.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from spqt_ti.container import Container
from spqt_ti.errors import ContainerError, ExecutionError

__all__ = ["ModelReference", "Request", "Study", "evaluate", "key_of"]

F64Array = npt.NDArray[np.float64]
Item = Any  # JSON: numbers, text, lists of them


class Study(Protocol):
    """Built as `StudyClass(container, settings)`; a result depends on its item alone, never on those before it."""

    def __call__(self, item: Item) -> F64Array:
        """f64 [n] of one item."""


@dataclass(frozen=True)
class ModelReference:
    """A container as workers find it: at `path`, else in `shared` (a folder as they see it) under its fingerprint."""

    path: str
    fingerprint: str
    shared: str | None = None

    @classmethod
    def of(cls, container: Container, shared: str | None = None) -> ModelReference:
        """The reference to an opened container."""
        return cls(str(container.path.absolute()), container.fingerprint, shared)

    def open(self) -> Container:
        """ExecutionError where this machine has no such model: it names the machine and where was looked."""
        tried = [Path(self.path), *([Path(self.shared) / self.fingerprint] if self.shared else [])]
        found = []
        for path in tried:
            try:
                container = Container.open(path)
            except ContainerError as error:
                found.append(str(error))
                continue
            if container.fingerprint == self.fingerprint:
                return container
            found.append(f"{path} is model {container.fingerprint}")
        raise ExecutionError(
            f"{socket.gethostname()} does not have model {self.fingerprint} ({'; '.join(found)}); put the container "
            "there, or into a folder that all workers see, under its fingerprint, and name that with --shared"
        )


@dataclass(frozen=True)
class Request:
    """`study`: "package.module:Class"."""

    study: str
    model: ModelReference
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Hash of everything that results depend on."""
        text = json.dumps([self.study, self.model.fingerprint, self.settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def key_of(item: Item) -> str:
    """What an item is known by among results."""
    return json.dumps(item, sort_keys=True)


_lock = threading.Lock()
_built: tuple[str, Study] | None = None


def evaluate(request: Request, item: Item) -> F64Array:
    """One item, with the study of the last request if it is the same one: a process has one model at a time."""
    global _built
    with _lock:
        if _built is None or _built[0] != request.key:
            _built = None  # not two models at a time
            module, _, name = request.study.partition(":")
            study: Study = getattr(importlib.import_module(module), name)(request.model.open(), request.settings)
            _built = (request.key, study)
        return np.asarray(_built[1](item), np.float64)
