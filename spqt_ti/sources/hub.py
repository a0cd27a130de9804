"""Models on the Hugging Face hub: `org/name`, `org/name:Q4_K_M` and `@revision`, fetched by `huggingface_hub`.

Files lie in the hub library's own cache (HF_HOME), which other programs share. HF_TOKEN or `hf auth login` gives a
token, HF_ENDPOINT another server, HF_HUB_OFFLINE=1 works from the cache alone. Pickles and code are never fetched.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from spqt_ti.errors import CheckpointError
from spqt_ti.sources.gguf_file import PART

__all__ = ["CachedRepository", "HubId", "cached_repositories", "chosen_files", "fetch", "fetch_file", "parse", "remove"]

_log = logging.getLogger(__name__)

_ID = re.compile(
    r"(?:https://huggingface\.co/|hf\.co/)?"
    r"(?P<repository>\w[\w.-]*/[\w.-]+)(?::(?P<choice>[\w./-]+))?(?:@(?P<revision>[\w./-]+))?"
)
_BESIDE = re.compile(r"[^/]+\.(json|jinja)|additional_chat_templates/[^/]+\.jinja")  # what belongs to safetensors
_WEIGHTS = re.compile(r"[^/]+\.safetensors")
_SAME_AGAIN = re.compile(r"consolidated.*")  # the weights once more, in Mistral's own names
_NO_MODEL = re.compile(r"(.*/)?(mmproj|[^/]*imatrix)[^/]*", re.IGNORECASE)  # GGUF files beside the models
_LONGEST_NAME = 255  # bytes, of most file systems
_NO_FILES = "the repository has no GGUF file"


@dataclass(frozen=True)
class HubId:
    """`choice`: which of a repository's GGUF models, by its quantisation, name or path; nothing where it has one."""

    repository: str
    choice: str = ""
    revision: str = "main"

    def __str__(self) -> str:
        choice = f":{self.choice}" if self.choice else ""
        return f"{self.repository}{choice}" + (f"@{self.revision}" if self.revision != "main" else "")


@dataclass(frozen=True)
class CachedRepository:
    """A model repository in the hub library's cache; `files`: bytes of the revision that was used last, by name."""

    repository: str
    path: Path
    size: int
    revisions: tuple[str, ...]
    files: Mapping[str, int]


def parse(name: str) -> HubId | None:
    """The id in `org/name[:CHOICE][@REVISION]`, also behind hf.co/; None for anything else."""
    found = _ID.fullmatch(name)
    if found is None or (not found["choice"] and found["repository"].endswith((".gguf", ".safetensors", ".json"))):
        return None
    if any({".", ".."} & set((part or "").split("/")) for part in found.groups()):  # a path, not an id
        return None
    return HubId(found["repository"], found["choice"] or "", found["revision"] or "main")


def fetch(wanted: HubId) -> Path:
    """Directory of a repository's safetensors, or path of its GGUF file (the first of several parts), fetched now.

    What is in the hub library's cache is not fetched again, and serves where the hub cannot be reached. CheckpointError
    says why a model cannot be had, and lists what there is where the choice is wrong or missing.
    """
    files, folder = _listing(wanted)
    names = chosen_files(wanted, files)
    folder = folder or _download(wanted, names)
    return folder if _is_safetensors(names) else folder / names[0]


def fetch_file(wanted: HubId, name: str) -> Path:
    """One file of a repository. CheckpointError where it cannot be had."""
    files, folder = _listing(wanted)
    if name not in files:
        jsons = sorted(other for other in files if other.endswith(Path(name).suffix or ".json"))
        raise CheckpointError(f"{wanted}: the repository has no file {name} (only {', '.join(jsons) or 'others'})")
    path = (folder or _download(wanted, [name])) / name
    return path


def chosen_files(wanted: HubId, files: Mapping[str, int]) -> list[str]:
    """Names of the files (name -> bytes of all there are) that make the chosen model; CheckpointError lists models."""
    models = _gguf_models(files)
    weights = [name for name in files if _WEIGHTS.fullmatch(name) and not _SAME_AGAIN.fullmatch(name)]
    if not wanted.choice and weights:
        return _distinct(wanted, sorted([*weights, *(name for name in files if _BESIDE.fullmatch(name))]))
    if not models:
        what = f"{_NO_FILES} to choose from" if weights else f"neither safetensors nor GGUF files are in {wanted}"
        raise CheckpointError(f"{wanted}: {what}{'; ask for ' + wanted.repository if weights else ''}")
    matching = _matching(wanted.choice, models)
    if len(matching) == 1:
        return _distinct(wanted, models[matching[0]])
    listed = [
        f"{_label(name)} ({sum(files[part] for part in models[name]) / 1e6:,.0f} MB)" for name in matching or models
    ]
    problem = "is in more than one file" if wanted.choice and matching else "is not there" if wanted.choice else ""
    first = f"{wanted.repository}: {wanted.choice} {problem}" if problem else f"{wanted.repository} has several models"
    raise CheckpointError(f"{first}; choose one as {wanted.repository}:NAME from {', '.join(listed)}")


def _distinct(wanted: HubId, names: list[str]) -> list[str]:
    """The names; CheckpointError for two that many file systems take for one, where the second would be the first."""
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise CheckpointError(
                f"{wanted}: the files {other} and {name} differ in the case of letters, or the form of accents, alone"
            )
    return names


def cached_repositories() -> list[CachedRepository]:
    """Every model repository in the hub library's cache, by name."""
    found = []
    for repo in _scan():
        newest = max(repo.revisions, key=lambda revision: revision.last_modified, default=None)
        files = {} if newest is None else _names(newest)
        revisions = tuple(sorted(revision.commit_hash for revision in repo.revisions))
        found.append(CachedRepository(repo.repo_id, Path(repo.repo_path), repo.size_on_disk, revisions, files))
    return sorted(found, key=lambda repo: repo.repository)


def remove(repository: CachedRepository) -> None:
    """Delete a repository, with all its revisions, from the hub library's cache."""
    from huggingface_hub import constants, scan_cache_dir

    scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(*repository.revisions).execute()


def _gguf_models(files: Mapping[str, int]) -> dict[str, list[str]]:
    """First file -> all files of every GGUF model, parts in order."""
    models: dict[str, list[str]] = {}
    firsts: dict[str, str] = {}
    for name in sorted(files):
        if name.endswith(".gguf") and not _NO_MODEL.fullmatch(name):
            part = PART.fullmatch(name)
            whole = f"{part[1]}-of-{part[3]}" if part else name
            models.setdefault(firsts.setdefault(whole, name), []).append(name)
    return models


def _matching(choice: str, models: Mapping[str, list[str]]) -> list[str]:
    """First files of the models that a choice names: a path, a file name, a stem, or the end of a stem."""
    if not choice:
        return list(models) if len(models) == 1 else []
    wanted = choice.lower()
    exact = [name for name in models if wanted in (name.lower(), PurePosixPath(name).name.lower(), _stem(name).lower())]
    ending = re.compile(rf".*[-._]{re.escape(wanted)}")
    return exact or [name for name in models if ending.fullmatch(_stem(name).lower())]


def _stem(name: str) -> str:
    """File name without ending and number of the part."""
    part = PART.fullmatch(name)
    return PurePosixPath(part[1]).name if part else PurePosixPath(name).stem


def _label(name: str) -> str:
    """The quantisation in a name (`Q4_K_M`), else the stem."""
    found = re.fullmatch(r".*[-._]((?:UD-)?(?:I?Q|TQ|MXFP|F|BF)\d\w*)", _stem(name), re.IGNORECASE)
    return found[1] if found else _stem(name)


def _inside(name: str) -> bool:
    """Whether a file of this name lies in the repository's folder on every system: another server may list any."""
    if not name.isprintable() or "\\" in name or PureWindowsPath(name).drive:
        return False
    parts = name.split("/")
    return not {"", ".", ".."} & set(parts) and all(len(part.encode()) <= _LONGEST_NAME for part in parts)


def _is_safetensors(names: list[str]) -> bool:
    return any(name.endswith(".safetensors") for name in names)


def _listing(wanted: HubId) -> tuple[dict[str, int], Path | None]:
    """Name -> bytes of a repository's files; those of the cache, with their folder, where the hub is not needed or
    cannot be reached.
    """
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    cached = _cached(wanted)
    if cached is not None and cached.commit_hash == wanted.revision and _complete(wanted, _names(cached)):
        return _names(cached), Path(cached.snapshot_path)  # a commit does not change
    try:
        info = _api().repo_info(wanted.repository, revision=wanted.revision, files_metadata=True)
        return {file.rfilename: file.size or 0 for file in info.siblings or [] if _inside(file.rfilename)}, None
    except HfHubHTTPError as error:
        raise _refused(wanted, error) from error
    except Exception as error:  # no network, or offline mode: of many types
        if cached is None:
            raise _unreachable(wanted, error) from error
        if not isinstance(error, OfflineModeIsEnabled):
            _log.info("the Hugging Face hub cannot be reached; %s is taken from the cache", wanted)
        return _names(cached), Path(cached.snapshot_path)


def _complete(wanted: HubId, files: Mapping[str, int]) -> bool:
    try:
        return bool(chosen_files(wanted, files))
    except CheckpointError:
        return False


def _download(wanted: HubId, names: list[str]) -> Path:
    """Folder of a snapshot that has these files."""
    from huggingface_hub.errors import HfHubHTTPError

    patterns = [glob.escape(name) for name in names]
    try:
        return Path(_api().snapshot_download(wanted.repository, revision=wanted.revision, allow_patterns=patterns))
    except HfHubHTTPError as error:
        raise _refused(wanted, error) from error
    except Exception as error:
        raise _unreachable(wanted, error) from error


def _api() -> Any:
    import huggingface_hub

    return huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="spqt-ti")


def _scan() -> Iterator[Any]:
    """The hub library's cached model repositories; none where there is no cache."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        yield from (repo for repo in scan_cache_dir(constants.HF_HUB_CACHE).repos if repo.repo_type == "model")
    except CacheNotFound:
        return


def _cached(wanted: HubId) -> Any:
    """The cached revision that an id asks for, or None."""
    for repo in _scan():
        for revision in repo.revisions if repo.repo_id == wanted.repository else ():
            if wanted.revision in (revision.commit_hash, *revision.refs):
                return revision
    return None


def _names(revision: Any) -> dict[str, int]:
    """Name -> bytes of the files of a cached revision."""
    root = Path(revision.snapshot_path)
    return {file.file_path.relative_to(root).as_posix(): file.size_on_disk for file in revision.files}


def _refused(wanted: HubId, error: Exception) -> CheckpointError:
    """What the hub's answer means."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        why = "its owner asks for terms to be accepted on its page; then set HF_TOKEN or run `hf auth login`"
    elif isinstance(error, RepositoryNotFoundError):
        why = "no such repository, or a private one: set HF_TOKEN or run `hf auth login`"
    elif isinstance(error, RevisionNotFoundError):
        why = f"the repository has no branch, tag or commit {wanted.revision}"
    else:
        why = _first_line(error)
    return CheckpointError(f"{wanted} cannot be fetched from the Hugging Face hub ({why})")


def _unreachable(wanted: HubId, error: Exception) -> CheckpointError:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled) or os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        why = "HF_HUB_OFFLINE is set, and it is not in the cache; unset it, or fetch the model where there is network"
    else:
        why = (
            f"the hub cannot be reached: {_first_line(error)}; on a machine with network, "
            f"`hf download {wanted.repository} --local-dir FOLDER` makes a folder that every command takes"
        )
    return CheckpointError(f"{wanted} cannot be fetched from the Hugging Face hub ({why})")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
