"""Quantised directories: the manifest, config, index, tokenizer and headers of a small container.

Sizes and checksums are made right again for most inputs: with wrong ones nothing behind them would be read.
"""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from pathlib import Path

import numpy as np
from fuzz.mutate import json_bytes, raw_bytes
from fuzz.target import CONFIG, Folder, Target, named, overwrite, parts, small_tokenizer_json, weights
from tiny_models import CHAT_TEMPLATE

from spqt_ti.container import Container, ContainerWriter, Source, Storage, plan_matrices
from spqt_ti.container.matrices import expected_tensors
from spqt_ti.formats.schemes import SCHEMES
from spqt_ti.model.sites import SITES

MANIFEST = "spqt.json"


def prepare(folder: Path) -> Target:
    directory = folder / "m"
    _write(directory)
    files = Folder(directory)
    seeds = tuple(named(name, files.whole[name]) for name in files.whole)
    fields = json.loads(files.whole[MANIFEST])

    def mutate(raw: bytes, rng: random.Random) -> bytes:
        name, _, content = raw.partition(b"\n")
        if name.endswith(b".safetensors"):
            size = 8 + int.from_bytes(content[:8], "little")
            if rng.random() < 0.5 and size < len(content):
                header = json_bytes(content[8:size], rng)
                content = len(header).to_bytes(8, "little") + header + content[size:]
            else:
                content = raw_bytes(content, rng, size)
        else:
            content = json_bytes(content, rng)
        return name + b"\n" + content

    def read(raw: bytes) -> None:
        name, content = parts(raw)
        rng = random.Random(zlib.crc32(raw))
        manifest = files.whole[MANIFEST]
        if name == MANIFEST:
            manifest = _sealed(content) if rng.random() < 0.9 else content
        else:
            files.put(name, content)
            if rng.random() < 0.9:
                entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                manifest = _sealed(json.dumps(fields | {"files": fields["files"] | {name: entry}}).encode())
        overwrite(directory / MANIFEST, manifest)
        opened = Container.open(directory, verify=rng.random() < 0.5)
        opened.read(rng.choice(opened.names()))
        opened.summary()

    return Target(seeds, mutate, read)


def _sealed(manifest: bytes) -> bytes:
    """With the digest that belongs to it, where it is a manifest at all."""
    start = manifest.find(b'"digest": "') + 11
    if start < 11 or len(manifest) < start + 64:
        return manifest
    cleared = manifest[:start] + b"0" * 64 + manifest[start + 64 :]
    return manifest[:start] + hashlib.sha256(cleared).hexdigest().encode() + manifest[start + 64 :]


def _write(directory: Path) -> None:
    """Without Taichi: the bytes of the matrices do not matter here."""
    stored = {site: Storage(SCHEMES["q4_k"], "zigzag") for site in SITES}
    matrices = plan_matrices(CONFIG, stored)
    given = weights()
    source = Source("tiny", {"model.safetensors": (1234, "ab" * 32)})
    with ContainerWriter(directory, CONFIG, matrices, source, small_tokenizer_json(), CHAT_TEMPLATE) as writer:
        for name, info in expected_tensors(CONFIG, matrices).items():
            values = given.get(name)
            writer.add(name, np.zeros(info.shape, info.dtype) if values is None else values.astype(info.dtype))
