"""Policies by name: files, those that come with the package (`smollm2-135m:0.5`), and files on the Hugging Face hub
(`org/name/policy.json@revision`).
"""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path

from spqt_ti.errors import CheckpointError, PolicyError
from spqt_ti.paths import expanded
from spqt_ti.sources import hub
from spqt_ti.sparsity.policy import SparsityPolicy

__all__ = ["find_policy", "policy_path", "shipped"]

_SHIPPED = re.compile(r"(?P<model>[\w.-]+):(?P<level>\d\.\d+)")
_ON_HUB = re.compile(r"(?P<repository>\w[\w.-]*/[\w.-]+)/(?P<file>[\w./-]+\.json)(?:@(?P<revision>[\w./-]+))?")


def find_policy(name: str | Path) -> SparsityPolicy:
    """The policy of a name. Raises PolicyError, which says what there is, where it is not there or malformed."""
    return SparsityPolicy.load(policy_path(name))


def policy_path(name: str | Path) -> Path:
    """The file of a name, fetched from the hub if need be; a path that is not there, for `load` to say so."""
    text = str(name)
    if expanded(name).exists():
        return expanded(name)
    if _SHIPPED.fullmatch(text):
        files = shipped()
        if text not in files:
            raise PolicyError(f"{text}: no such file, and no policy of that name comes along ({', '.join(files)})")
        return files[text]
    on_hub = _ON_HUB.fullmatch(text)
    if on_hub:
        wanted = hub.HubId(on_hub["repository"], revision=on_hub["revision"] or "main")
        try:
            return hub.fetch_file(wanted, on_hub["file"])
        except CheckpointError as error:
            raise PolicyError(f"{text}: no such file here, and {error}") from error
    return expanded(name)


def shipped() -> dict[str, Path]:
    """Name -> file of the policies that come with the package: for known models, quantised as they are by default."""
    folder = Path(str(importlib.resources.files("spqt_ti").joinpath("data/policies")))
    return {":".join(path.stem.rsplit("-", 1)): path for path in sorted(folder.glob("*-?.*.json"))}
