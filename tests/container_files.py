"""Containers of a tiny model made with the NumPy formats, and ways to damage them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tiny_models import CHAT_TEMPLATE, random_weights, tiny_config, tiny_tokenizer_json

from spqt_ti.container import (
    Container,
    ContainerWriter,
    Source,
    Storage,
    plan_matrices,
)
from spqt_ti.container.matrices import (
    MatrixInfo,
    expected_tensors,
)
from spqt_ti.formats import layout as layouts
from spqt_ti.formats.schemes import SCHEMES
from spqt_ti.model.sites import SITES

CONFIG = tiny_config(attention_bias=True)
WEIGHTS = random_weights(CONFIG)
SOURCE = Source("tiny", {"model.safetensors": (1234, "ab" * 32)})
SHARD = "model-00002-of-00003.safetensors"  # layer 0
DOWN = "model.layers.0.mlp.down_proj.q4_k"


def storage(layout: str = "zigzag", scheme: str = "q4_k", **others: Storage) -> dict[str, Storage]:
    """The layers' matrices in this layout and scheme, other classes of matrix as said."""
    return {site: Storage(SCHEMES[scheme], layout) for site in SITES} | others


def stacked(matrix: MatrixInfo) -> np.ndarray:
    """f32 [rows, cols] of a matrix, from the weights that went in; a tied head is the embedding."""
    names = [f"{part}.weight" for part in matrix.projections()]
    return np.concatenate([WEIGHTS.get(name, WEIGHTS["model.embed_tokens.weight"]) for name in names])


def tensors(
    layout: str = "zigzag", config=CONFIG, stored_as: dict[str, Storage] | None = None
) -> dict[str, np.ndarray]:
    """Every tensor of a container, made with the NumPy formats."""
    matrices = plan_matrices(config, stored_as or storage(layout))
    expected = expected_tensors(config, matrices)
    found = {
        matrix.tensor: layouts.quantize_matrix(stacked(matrix), matrix.layout, matrix.scheme).reshape(
            expected[matrix.tensor].shape
        )
        for matrix in matrices.values()
    }
    for name in expected:
        stem = name.removesuffix(".bias")
        if name not in found:
            parts = matrices[stem].projections() if stem in matrices else [stem]
            found[name] = np.concatenate([WEIGHTS[f"{part}.bias" if stem != name else name] for part in parts])
    return found


def writer(destination: Path, layout: str = "zigzag", config=CONFIG, stored_as=None, **options) -> ContainerWriter:
    matrices = plan_matrices(config, stored_as or storage(layout))
    return ContainerWriter(destination, config, matrices, SOURCE, tiny_tokenizer_json(), CHAT_TEMPLATE, **options)


def write(destination: Path, content: dict[str, np.ndarray], **options) -> Container:
    with writer(destination, **options) as out:
        for name, values in content.items():
            out.add(name, values)
    return Container.open(destination)


def edit_json(name: str, change):
    """A damage that changes a JSON file of the container, checksums corrected."""

    def damage(path: Path) -> None:
        content = json.loads((path / name).read_text())
        change(content)
        (path / name).write_text(json.dumps(content))
        correct_checksums(path)

    return damage


def edit_shard(change):
    """A damage that changes the tensors of a shard, checksums corrected."""

    def damage(path: Path) -> None:
        content = load_file(path / SHARD)
        change(content)
        save_file(content, path / SHARD)
        correct_checksums(path)

    return damage


def correct_checksums(path: Path) -> None:
    manifest = json.loads((path / "spqt.json").read_text())
    files = manifest.get("files")
    for name, entry in files.items() if isinstance(files, dict) else ():
        if isinstance(entry, dict) and (path / name).is_file():
            data = (path / name).read_bytes()
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps(manifest | {"digest": "0" * 64}, indent=2)
    text = text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest(), 1)
    (path / "spqt.json").write_text(text)


def edit_matrix(**changes):
    """A damage that changes what the manifest says of a matrix."""
    return edit_json("spqt.json", lambda manifest: manifest["matrices"][1].update(changes))


def truncate(path: Path) -> None:
    os.truncate(path / SHARD, 1000)


def flip_a_byte(path: Path) -> None:
    data = bytearray((path / SHARD).read_bytes())
    data[-7] ^= 1
    (path / SHARD).write_bytes(data)


def wrong_magic(path: Path) -> None:
    (path / SHARD).write_bytes(b"\xff" * 64)
    correct_checksums(path)


def half_a_shape(content: dict[str, np.ndarray]) -> None:
    content[DOWN] = content[DOWN][: len(content[DOWN]) // 2]


def names_in(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def snapshot(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


def fill(out: ContainerWriter, added: list[str]) -> None:
    for name, values in tensors("zigzag").items():
        added.append(name)
        out.add(name, values)
