"""`spqt.json`: what a container says of itself. Reads formats 1 and 2, writes 2; docs/format.md describes both."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spqt_ti import bounded_json
from spqt_ti.bounded_json import JsonError
from spqt_ti.container.matrices import (
    DTYPES,
    EMBEDDING,
    HEAD,
    ExtraTensor,
    MatrixInfo,
    Storage,
    TensorInfo,
    plan_matrices,
)
from spqt_ti.errors import ContainerError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats.schemes import SCHEMES
from spqt_ti.model.config import ModelConfig

__all__ = [
    "CONFIG",
    "FORMAT_VERSION",
    "INDEX",
    "MANIFEST",
    "TOKENIZER",
    "Files",
    "Manifest",
    "Source",
    "damaged",
    "online_record",
]

FORMAT_VERSION = 2
MANIFEST, CONFIG, TOKENIZER, INDEX = "spqt.json", "config.json", "tokenizer.json", "model.safetensors.index.json"
MOST_BYTES = 32 << 20  # of the manifest, the configuration or the index; the largest models need less than 1 MB

# What this program can do at run time for a transformation or an optional tensor that is marked as required.
_KNOWN_KINDS: frozenset[str] = frozenset({"online_rotation"})
_KNOWN_ROLES: frozenset[str] = frozenset()

_NO_DIGEST = b"0" * 64
_DIGEST_FIELD = b'"digest": "'
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # of this directory, on every system

Files = Mapping[str, tuple[int, str]]  # name -> bytes, SHA-256


@dataclass(frozen=True)
class Source:
    """What a container was made from: a name, and size and SHA-256 of the files (none in format 1)."""

    name: str
    files: Files

    @property
    def sha256(self) -> str | None:
        """Of the one file, or of the list of several as `sha256sum` prints it, sorted; None in format 1."""
        if len(self.files) == 1:
            return next(iter(self.files.values()))[1]
        return _list_digest(self.files) if self.files else None


@dataclass(frozen=True)
class Manifest:
    """The content of `spqt.json`, checked field by field.

    `transformations`: what was done to the weights before they were quantised, in order; each is an object with `kind`
    and its parameters. One with `"required": true` has a part at run time, which a program has to know.
    """

    source: Source
    chat_template: str | None
    transformations: tuple[Mapping[str, Any], ...]
    extra: tuple[ExtraTensor, ...]
    files: Files
    matrices: tuple[Mapping[str, Any], ...]  # as they stand there
    version: int = FORMAT_VERSION

    @property
    def fingerprint(self) -> str:
        """Of all files' checksums: two containers with the same one are the same model."""
        return _list_digest(self.files)[:16]

    @classmethod
    def read(cls, file: Path) -> Manifest:
        """The manifest in a file. Raises OSError, and ContainerError for a damaged one or one of another version."""
        try:
            data = bounded_json.read_bytes(file, MOST_BYTES)
            fields = bounded_json.parse_object(data)
        except JsonError as error:
            raise damaged(file, str(error)) from error
        return _Reader(file, data, fields).manifest()

    def encode(self) -> bytes:
        """The bytes of the file, of format 2. Its digest is that of these bytes with zeros in the digest's place."""
        content = {
            "format": "spqt",
            "version": FORMAT_VERSION,
            "digest": _NO_DIGEST.decode(),
            "source": {"name": self.source.name, "files": _describe(self.source.files)},
            "chat_template": self.chat_template,
            "transformations": [dict(one) for one in self.transformations],
            "matrices": [dict(one) for one in self.matrices],
            "tensors": [tensor.to_dict() for tensor in self.extra],
            "files": _describe(self.files),
        }
        data = (json.dumps(content, indent=2) + "\n").encode()
        return data.replace(_NO_DIGEST, hashlib.sha256(data).hexdigest().encode(), 1)

    def check_rotation(self, file: Path, config: ModelConfig) -> None:
        """ContainerError unless the transformations say what config says, and mean what this program would compute."""
        found = [one for one in self.transformations if one["kind"] == "online_rotation"]
        wanted = [online_record(config)] if config.rotates_down else []
        if [{key: value for key, value in one.items() if key != "seed"} for one in found] != wanted:
            raise damaged(file, f"what it says of the online rotation is not what {CONFIG} and this version make of it")

    def matrices_of(self, file: Path, config: ModelConfig) -> dict[str, MatrixInfo]:
        """The model's matrices as they are stored; ContainerError unless the manifest lists exactly those."""
        unlike = damaged(file, f"its list of matrices is not that of {CONFIG}")
        if config.num_hidden_layers > len(self.matrices):  # first: a damaged number of layers may be billions
            raise unlike
        planned = plan_matrices(config, {str(entry["name"]): _storage(file, entry) for entry in self.matrices})
        # Format 1 does not list embedding and head, which are as by default there.
        listed = [info for info in planned.values() if self.version > 1 or info.name not in (EMBEDDING, HEAD)]
        if [info.to_dict() for info in listed] != list(self.matrices):
            raise unlike
        return planned


class _Reader:
    """Takes the fields of a manifest one by one."""

    def __init__(self, file: Path, data: bytes, fields: Mapping[str, Any]) -> None:
        self._file, self._data, self._fields = file, data, fields

    def manifest(self) -> Manifest:
        """All fields, whichever version they are of."""
        fields = self._fields
        if fields.get("format") != "spqt":
            raise damaged(self._file, f"format is {fields.get('format')!r}, expected 'spqt'")
        version = fields.get("version")
        if version not in (1, FORMAT_VERSION) or isinstance(version, (bool, float)):
            raise ContainerError(
                f"{self._file}: format version is {version!r}, this program reads 1 and {FORMAT_VERSION}; "
                "use the version that wrote it, or quantise the model again"
            )
        if version == FORMAT_VERSION:
            self._check_digest()
        template = fields.get("chat_template")
        if template is not None and not isinstance(template, str):
            raise damaged(self._file, "chat_template is of another type than text")
        manifest = Manifest(
            source=self._source() if version > 1 else Source(self._text("source"), {}),
            chat_template=template,
            transformations=self._transformations() if version > 1 else (),
            extra=self._extra() if version > 1 else (),
            files=self._files(),
            matrices=self._matrices() if version > 1 else self._matrices_of_format_1(),
            version=version,
        )
        for entry in manifest.matrices:
            _storage(self._file, entry)
        return manifest

    def _check_digest(self) -> None:
        digest, start = self._fields.get("digest"), self._data.find(_DIGEST_FIELD) + len(_DIGEST_FIELD)
        cleared = self._data[:start] + _NO_DIGEST + self._data[start + len(_NO_DIGEST) :]
        end = start + len(_NO_DIGEST)
        if digest != hashlib.sha256(cleared).hexdigest() or self._data[start:end] != digest.encode():
            raise damaged(self._file, "checksum mismatch: it is not as it was written")

    def _text(self, name: str) -> str:
        value = self._fields.get(name)
        if not isinstance(value, str):
            raise damaged(self._file, f"{name} is {value!r}, expected a text")
        return value

    def _objects(self, name: str, *texts: str) -> tuple[Mapping[str, Any], ...]:
        """A list of objects, in each of which these fields are texts."""
        value = self._fields.get(name)
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise damaged(self._file, f"{name} is missing, or not a list of objects")
        for one in value:
            for text in texts:
                if not isinstance(one.get(text), str):
                    raise damaged(self._file, f"an entry of {name} has the {text} {one.get(text)!r}")
        return tuple(value)

    def _source(self) -> Source:
        value = self._fields.get("source")
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise damaged(self._file, "source is missing or has no name")
        return Source(value["name"], self._checksums(value.get("files"), "source"))

    def _files(self) -> Files:
        files = self._checksums(self._fields.get("files"), "files")
        for name in files:
            if not _FILE_NAME.fullmatch(name):  # a manifest must not lead out of its directory
                raise damaged(self._file, f"its entry for file {name!r} is malformed")
        for name in (CONFIG, TOKENIZER, INDEX):
            if name not in files:
                raise damaged(self._file, f"it lists no {name}")
        return files

    def _checksums(self, entries: Any, what: str) -> Files:
        if not isinstance(entries, dict):
            raise damaged(self._file, f"the list of {what} is missing")
        found = {}
        for name, entry in entries.items():
            size, sha256 = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
            if type(size) is not int or size < 0 or not isinstance(sha256, str):
                raise damaged(self._file, f"its entry for file {name!r} is malformed")
            found[name] = (size, sha256)
        return found

    def _matrices(self) -> tuple[Mapping[str, Any], ...]:
        return self._objects("matrices", "name", "scheme", "layout")

    def _matrices_of_format_1(self) -> tuple[Mapping[str, Any], ...]:
        """One scheme and one layout for all matrices of the layers."""
        storage = {"scheme": self._text("scheme"), "layout": self._text("layout")}
        return tuple({**entry, **storage} for entry in self._objects("matrices", "name"))

    def _transformations(self) -> tuple[Mapping[str, Any], ...]:
        found = self._objects("transformations", "kind")
        for one in found:
            self._check_required(one, "transformation", one["kind"], _KNOWN_KINDS)
        return found

    def _extra(self) -> tuple[ExtraTensor, ...]:
        found = []
        for entry in self._objects("tensors", "name", "dtype", "role"):
            required = self._check_required(entry, "role of a tensor", entry["role"], _KNOWN_ROLES)
            shape = entry.get("shape")
            if entry["dtype"] not in DTYPES:
                raise damaged(self._file, f"tensor {entry['name']} is {entry['dtype']}, not one of {', '.join(DTYPES)}")
            if not isinstance(shape, list) or not shape or not all(type(n) is int and n > 0 for n in shape):
                raise damaged(self._file, f"tensor {entry['name']} has the shape {shape!r}")
            info = TensorInfo(DTYPES[entry["dtype"]], tuple(shape))
            found.append(ExtraTensor(entry["name"], info, entry["role"], required))
        if len({tensor.name for tensor in found}) != len(found):
            raise damaged(self._file, "two optional tensors have the same name")
        return tuple(found)

    def _check_required(self, entry: Mapping[str, Any], what: str, kind: str, known: frozenset[str]) -> bool:
        required = entry.get("required", False)
        if not isinstance(required, bool):
            raise damaged(self._file, f"{what} {kind!r} has 'required' that is neither true nor false")
        if required and kind not in known:
            raise ContainerError(
                f"{self._file}: {what} {kind!r} changes what decoding has to compute, and this version does not know "
                "it; use the version that wrote it"
            )
        return required


def damaged(file: Path, what: str) -> ContainerError:
    """The error for a file that is not as it was written."""
    return ContainerError(f"{file}: {what}; quantise the model again")


def online_record(config: ModelConfig) -> dict[str, Any]:
    """The transformation that says how the input of down is turned at run time, by width of layers; without seed."""
    layers = {width: layer for layer, width in enumerate(config.widths())}
    transforms = {str(width): str(config.down_transform(layers[width])) for width in sorted(layers)}
    return {"kind": "online_rotation", "required": True, "site": "down", "transforms": transforms}


def _storage(file: Path, entry: Mapping[str, Any]) -> Storage:
    for what, known in (("scheme", tuple(SCHEMES)), ("layout", layouts.LAYOUTS)):
        if entry[what] not in known:
            raise damaged(file, f"{what} is {entry[what]!r}, expected one of: {', '.join(known)}")
    return Storage(SCHEMES[entry["scheme"]], entry["layout"])


def _list_digest(files: Files) -> str:
    lines = "".join(f"{sha256}  {name}\n" for name, (_, sha256) in sorted(files.items()))
    return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()


def _describe(files: Files) -> dict[str, Any]:
    return {name: {"bytes": size, "sha256": sha256} for name, (size, sha256) in files.items()}
