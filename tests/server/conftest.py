"""One server for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

for module in ("starlette", "uvicorn", "msgspec", "prometheus_client", "openai", "httpx"):
    pytest.importorskip(module, reason=f"{module} is not installed: pip install '.[server,test]'")

import served  # noqa: E402

from spqt_ti.api import Model  # noqa: E402
from spqt_ti.server.app import Server  # noqa: E402
from spqt_ti.sparsity.policy import SparsityPolicy  # noqa: E402


@pytest.fixture(scope="session")
def model() -> Model:
    return served.tiny()


@pytest.fixture(scope="session")
def policy(model: Model) -> SparsityPolicy:
    return SparsityPolicy("mine", 0.5, np.full((2, 4), 0.4, np.float32), model.container.fingerprint)


@pytest.fixture(scope="module")
def live(model: Model, policy: SparsityPolicy) -> Iterator[tuple[Server, str]]:
    with served.served(model, {"mine": policy}, waiting=4, body_bytes=20_000, max_tokens=60) as found:
        yield found


@pytest.fixture
def server(live: tuple[Server, str]) -> Server:
    return live[0]


@pytest.fixture
def address(live: tuple[Server, str]) -> str:
    return live[1]
