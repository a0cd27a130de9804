"""Where figures come from: the line under every table, so that a pasted one carries it."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
from datetime import date
from pathlib import Path

from spqt_ti import __version__
from spqt_ti.backend.devices import cpu_name
from spqt_ti.threads import available_threads

BUSY = 0.5  # load average per CPU from which on others get in the way

_log = logging.getLogger(__name__)
PACKAGE = Path(__file__).parents[1]


def provenance(threads: int | None, device: str | None = None, *more: str) -> str:
    """Device (default: this CPU), threads, version with the commit where there is one, system and date.

    `more`: other versions that count, such as "llama-cpp-python 0.3.16".
    """
    commit = source_commit()
    version = f"spqt-ti {__version__}" + (f" (commit {commit})" if commit else "")
    workers = [f"{threads} thread{'s' * (threads != 1)}"] if threads else []
    parts = [device or cpu_name(), *workers, version, *more, f"{platform.system()} {platform.machine()}"]
    return ", ".join([*parts, date.today().isoformat()])


def warn_if_busy() -> None:
    """Log a warning where other programs compute now: what is measured beside them is noise."""
    if not hasattr(os, "getloadavg"):
        return
    load, cpus = os.getloadavg()[0], available_threads()
    if load > BUSY * cpus:
        _log.warning("this machine is busy (load %.1f on %d CPUs): wait, or trust ratios only", load, cpus)


def source_commit() -> str | None:
    """The commit of the tree that this package lies in, with "-dirty" where files differ; None for an installed copy
    and without git.
    """
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*arguments: str) -> str | None:
        command = [git, "-c", "core.fsmonitor=false", "-C", str(PACKAGE), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return None if done.returncode else done.stdout.strip()

    if ask("ls-files", "--error-unmatch", "__init__.py") is None:
        return None  # in somebody else's repository, a virtual environment for instance
    return ask("describe", "--always", "--dirty", "--exclude=*")
