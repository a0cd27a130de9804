"""Containers: what is written comes back, damage is named in one line, and a failure leaves nothing behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tiny_models import CHAT_TEMPLATE, random_weights, tiny_config, tiny_tokenizer_json

from spqt_ti.container import (
    Container,
    ContainerWriter,
    Source,
    Storage,
    check_destination,
    directories,
    plan_matrices,
)
from spqt_ti.container import (
    writer as writer_module,
)
from spqt_ti.container.matrices import (
    MatrixInfo,
    expected_tensors,
    matrix_name,
)
from spqt_ti.errors import ContainerError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats import q4_k
from spqt_ti.formats.schemes import SCHEMES
from spqt_ti.model.sites import SITES, Site

CONFIG = tiny_config(attention_bias=True)
WEIGHTS = random_weights(CONFIG)
SOURCE = Source("tiny", {"model.safetensors": (1234, "ab" * 32)})
SHARD = "model-00002-of-00003.safetensors"  # block 0
DOWN = "model.layers.0.mlp.down_proj.q4_k"


def storage(layout: str = "zigzag", scheme: str = "q4_k", **others: Storage) -> dict[str, Storage]:
    """The blocks' matrices in this layout and scheme, other classes of matrix as said."""
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


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> dict[str, Container]:
    """One container per layout; not to be changed."""
    folder = tmp_path_factory.mktemp("containers")
    return {layout: write(folder / layout, tensors(layout), layout=layout) for layout in layouts.LAYOUTS}


@pytest.fixture
def copy(stored, tmp_path) -> Path:
    """A zigzag container to damage."""
    return Path(shutil.copytree(stored["zigzag"].path, tmp_path / "copy"))


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_round_trip(layout, stored):
    container = stored[layout]
    assert (container.config, container.summary()) == (CONFIG, f"q4_k, {layout}")
    assert (container.source, container.chat_template) == (SOURCE, CHAT_TEMPLATE)
    assert (container.version, container.transformations, dict(container.extra)) == (2, (), {})
    assert container.tokenizer_json == tiny_tokenizer_json()
    expected = tensors(layout)
    assert set(container.names()) == set(expected)
    for name, values in expected.items():
        found = container.read(name)
        assert found.dtype == values.dtype
        assert not found.flags.writeable
        np.testing.assert_array_equal(found, values, err_msg=name)


def test_matrices_name_their_parts(stored):
    matrices = stored["zigzag"].matrices
    qkv = matrices["model.layers.1.self_attn.qkv_proj"]
    assert qkv.parts == {"q_proj": 192, "k_proj": 96, "v_proj": 96}
    assert (qkv.rows, qkv.cols) == (384, 192)
    assert qkv.projections()["model.layers.1.self_attn.v_proj"] == slice(288, 384)
    assert matrices["model.layers.0.mlp.gate_up_proj"].parts == {"gate_proj": 160, "up_proj": 160}
    assert list(matrices)[1:-1] == [matrix_name(layer, site) for layer in range(2) for site in Site]
    assert matrices["lm_head"].projections() == {"lm_head": slice(0, CONFIG.vocab_size)}
    assert matrices["model.embed_tokens"].projections() == {"model.embed_tokens": slice(0, CONFIG.vocab_size)}


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_dequantised_weights_have_hugging_face_names(layout, stored):
    container = stored[layout]
    found = dict(container.weights())
    assert list(found) == list(CONFIG.tensor_shapes())
    for name, values in found.items():
        assert values.shape == CONFIG.tensor_shapes()[name]
        exact = values.ndim == 1
        np.testing.assert_allclose(values, WEIGHTS[name], rtol=0, atol=0 if exact else 0.025, err_msg=name)
    qkv = container.dequantize("model.layers.0.self_attn.qkv_proj")
    np.testing.assert_array_equal(qkv[192:288], found["model.layers.0.self_attn.k_proj.weight"])


def test_row_bytes_are_ggml_s(stored):
    container = stored["row"]
    for part, rows in container.matrices["model.layers.0.self_attn.qkv_proj"].projections().items():
        found = container.row_bytes(part)
        w = WEIGHTS[f"{part}.weight"]
        padded = np.pad(w, ((0, 0), (0, 64)))  # 192 columns
        np.testing.assert_array_equal(found, q4_k.quantize(padded).reshape(len(w), 144))
        values = gguf.quants.dequantize(found, gguf.GGMLQuantizationType.Q4_K)[:, :192]
        np.testing.assert_array_equal(values, container.dequantize(part))
        assert len(found) == rows.stop - rows.start


def test_row_bytes_need_the_row_layout(stored):
    with pytest.raises(ContainerError, match="--layout row"):
        stored["zigzag"].row_bytes("model.layers.0.self_attn.q_proj")


def test_zigzag_superblocks_are_columns(stored):
    """Superblock (band, column) is Q4_K of 256 rows of that column; the tail band is cut to its sub-blocks."""
    container, name = stored["zigzag"], "model.layers.0.mlp.gate_up_proj"
    assert container.matrix(0, Site.GATE_UP).name == name
    data = container.read(f"{name}.q4_k")
    assert data.size == 192 * (144 + 48)  # 320 rows: a full band, and two sub-blocks
    blocks = layouts.superblocks(data, 320, 192, "zigzag", q4_k.SCHEME)
    w = stacked(container.matrices[name])
    for column in (0, 17, 191):
        np.testing.assert_array_equal(blocks[column], q4_k.quantize(w[:256, column][None])[0])
        tail = np.pad(w[256:, column], (0, 192))
        expected = q4_k.quantize(tail[None])[0]
        np.testing.assert_array_equal(blocks[192 + column][:48], expected[:48])


def test_tied_head_is_stored_once(tmp_path):
    config = tiny_config(tie_word_embeddings=True)
    container = write(tmp_path / "tied", tensors("zigzag", config), config=config)
    assert "lm_head.q8_0" not in container.names()
    assert "lm_head.weight" not in dict(container.weights())
    np.testing.assert_array_equal(container.dequantize("lm_head"), container.dequantize("model.embed_tokens"))


def test_unknown_names(stored):
    for read in (stored["row"].read, stored["row"].dequantize, stored["row"].row_bytes):
        with pytest.raises(ContainerError, match=r"no (tensor|matrix) model\.nothing"):
            read("model.nothing")


def test_fingerprint_identifies_the_model(stored, copy, tmp_path):
    again = write(tmp_path / "again", tensors("zigzag"))
    assert again.fingerprint == stored["zigzag"].fingerprint == Container.open(copy).fingerprint
    other = tensors("zigzag")
    other["model.norm.weight"] = other["model.norm.weight"] + 1
    assert write(tmp_path / "other", other).fingerprint != again.fingerprint
    assert stored["row"].fingerprint != again.fingerprint


def test_other_files_beside_the_model_do_not_matter(copy):
    (copy / "calibration.json").write_text("{}")
    Container.open(copy)


# Damage ---------------------------------------------------------------------------------------------------------------


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


DAMAGES = {
    "truncated": (truncate, SHARD, "truncated or changed: it has 1,000 bytes, expected"),
    "checksum": (flip_a_byte, SHARD, "checksum mismatch"),
    "wrong magic": (wrong_magic, SHARD, "not a whole safetensors file"),
    "wrong shape": (edit_shard(half_a_shape), SHARD, f"tensor {DOWN} is uint8 [8960], expected uint8 [17920]"),
    "wrong type": (
        edit_shard(lambda content: content.update({DOWN: content[DOWN].view(np.float32)})),
        SHARD,
        f"tensor {DOWN} is float32 [4480], expected uint8 [17920]",
    ),
    "unknown type": (
        edit_shard(lambda content: content.update({DOWN: content[DOWN].view(np.int16)})),
        SHARD,
        f"tensor {DOWN} is I16, expected one of",
    ),
    "missing tensor": (
        edit_shard(lambda content: content.pop(DOWN)),
        SHARD,
        f"tensor {DOWN} is missing, expected uint8",
    ),
    "extra tensor": (
        edit_shard(lambda content: content.update(extra=np.zeros(3, np.uint8))),
        SHARD,
        "tensor extra is not part of this model",
    ),
    "missing shard": (lambda path: (path / SHARD).unlink(), SHARD, "the file is missing"),
    "missing manifest": (lambda path: (path / "spqt.json").unlink(), "", "spqt.json is missing"),
    "missing tokenizer": (lambda path: (path / "tokenizer.json").unlink(), "tokenizer.json", "the file is missing"),
    "no JSON": (lambda path: (path / "spqt.json").write_text("{"), "spqt.json", "not valid JSON"),
    "not UTF-8": (lambda path: (path / "spqt.json").write_bytes(b"\xff\xfe"), "spqt.json", "not UTF-8"),
    "deep JSON": (lambda path: (path / "spqt.json").write_text("[" * 100_000), "spqt.json", "nested deeper"),
    "no object": (lambda path: (path / "spqt.json").write_text("[]"), "spqt.json", "expected a JSON object"),
    "format": (edit_json("spqt.json", lambda m: m.update(format="gguf")), "spqt.json", "format is 'gguf'"),
    "version": (
        edit_json("spqt.json", lambda m: m.update(version=99)),
        "spqt.json",
        "format version is 99, this program reads 1 and 2",
    ),
    "scheme": (edit_matrix(scheme="q9"), "spqt.json", "scheme is 'q9', expected one of: q4_k"),
    "layout": (edit_matrix(layout="z"), "spqt.json", "layout is 'z', expected one of: zigzag, row"),
    "other layout": (edit_matrix(layout="row"), "", "expected uint8"),
    "other scheme": (edit_matrix(scheme="q6_k"), "", "q6_k is missing, expected uint8"),
    "no scheme": (edit_matrix(scheme=None), "spqt.json", "an entry of matrices has the scheme None"),
    "source": (edit_json("spqt.json", lambda m: m.pop("source")), "spqt.json", "source"),
    "matrices": (
        edit_json("spqt.json", lambda m: m["matrices"][0].update(rows=1)),
        "spqt.json",
        "its list of matrices is not that of config.json",
    ),
    "files": (edit_json("spqt.json", lambda m: m.update(files=3)), "spqt.json", "the list of files is missing"),
    "no config listed": (
        edit_json("spqt.json", lambda m: m["files"].pop("config.json")),
        "spqt.json",
        "it lists no config.json",
    ),
    "leads out": (
        edit_json("spqt.json", lambda m: m["files"].update({"../x": {"bytes": 1, "sha256": ""}})),
        "spqt.json",
        "its entry for file '../x' is malformed",
    ),
    "malformed entry": (
        edit_json("spqt.json", lambda m: m["files"].update({"config.json": 5})),
        "spqt.json",
        "its entry for file 'config.json' is malformed",
    ),
    "unknown architecture": (
        edit_json("config.json", lambda c: c.update(architectures=["MambaForCausalLM"], model_type="mamba")),
        "config.json",
        "'MambaForCausalLM' is not supported",
    ),
    "index": (
        edit_json("model.safetensors.index.json", lambda i: i.pop("weight_map")),
        "model.safetensors.index.json",
        "weight_map is missing",
    ),
    "index names another file": (
        edit_json("model.safetensors.index.json", lambda i: i["weight_map"].update({DOWN: "../../etc/passwd"})),
        "model.safetensors.index.json",
        "a file that spqt.json does not list",
    ),
    "index without a tensor": (
        edit_json("model.safetensors.index.json", lambda i: i["weight_map"].pop(DOWN)),
        "model.safetensors.index.json",
        f"tensor {DOWN} is missing",
    ),
}


@pytest.mark.parametrize(("damage", "file", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named(damage, file, message, copy):
    damage(copy)
    with pytest.raises(ContainerError) as caught:
        Container.open(copy)
    line = str(caught.value)
    assert "\n" not in line
    assert message in line
    assert str(copy / file) in line


def test_without_verification_checksums_are_not_compared(copy):
    flip_a_byte(copy)
    Container.open(copy, verify=False)


def test_not_a_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    for name in ("file", "nowhere", "file/below"):
        with pytest.raises(ContainerError, match="expected a quantised model"):
            Container.open(tmp_path / name)


# Writing --------------------------------------------------------------------------------------------------------------


def names_in(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def snapshot(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing(error, tmp_path):
    content = tensors("zigzag")

    def fail() -> None:
        with writer(tmp_path / "new" / "deep" / "model") as out:
            for name, values in list(content.items())[:-1]:
                out.add(name, values)
            raise error

    with pytest.raises(error):
        fail()
    assert names_in(tmp_path) == set()


def test_a_shard_is_written_as_soon_as_it_is_complete(tmp_path):
    with writer(tmp_path / "model") as out:
        for name, values in tensors("zigzag").items():
            if name.startswith("model.layers.0."):
                out.add(name, values)
        (partial,) = tmp_path.iterdir()
        assert names_in(partial) == {SHARD}
        for name, values in tensors("zigzag").items():
            if not name.startswith("model.layers.0."):
                out.add(name, values)


def test_a_missing_tensor_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tensor .* was not added"):
        write(tmp_path / "model", {})
    assert names_in(tmp_path) == set()


def test_only_expected_tensors_are_taken(tmp_path):
    with pytest.raises(ValueError, match="not part of this model"), writer(tmp_path / "model") as out:
        out.add("other", np.zeros(3, np.float32))
    with (
        pytest.raises(ValueError, match=r"is float64 \[192\], expected float32 \[192\]"),
        writer(tmp_path / "m") as out,
    ):
        out.add("model.norm.weight", np.zeros(192))
    norm = np.zeros(192, np.float32)
    with pytest.raises(ValueError, match="already"), writer(tmp_path / "m") as out:  # noqa: PT012
        out.add("model.norm.weight", norm)
        out.add("model.norm.weight", norm)
    assert names_in(tmp_path) == set()


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "model").mkdir()
    write(tmp_path / "model", tensors("zigzag"))
    assert names_in(tmp_path) == {"model"}


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", tensors("zigzag"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "spqt.json").is_file()


def test_a_container_is_replaced_only_when_told(copy):
    before = snapshot(copy)
    with pytest.raises(ContainerError, match="already there; --force"):
        writer(copy)
    assert snapshot(copy) == before
    write(copy, tensors("row"), layout="row", overwrite=True)
    assert Container.open(copy).summary() == "q4_k, row"
    assert names_in(copy.parent) == {"copy"}


def test_a_destination_taken_in_the_meantime(tmp_path):
    with pytest.raises(ContainerError, match="not empty"), writer(tmp_path / "model") as out:  # noqa: PT012
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "diary.txt").write_text("dear diary")
        fill(out, [])
    assert snapshot(tmp_path / "model") == {"diary.txt": b"dear diary"}
    assert names_in(tmp_path) == {"model"}


def test_other_directories_are_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary.txt").write_text("dear diary")
    for overwrite in (False, True):
        with pytest.raises(ContainerError, match="not empty and holds no quantised model"):
            writer(tmp_path / "home", overwrite=overwrite)
    assert (tmp_path / "home" / "diary.txt").read_text() == "dear diary"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_failing_swap_keeps_the_old_container(failing, error, copy, monkeypatch):
    """Where two names cannot be exchanged in one step.

    Renames: 1 moves the old container away, 2 puts the new one in place; a third one undoes the first.
    """
    before, rename, calls = snapshot(copy), os.rename, []

    def failing_rename(source, target):
        calls.append(source)
        if len(calls) == failing:
            raise error
        rename(source, target)

    monkeypatch.setattr(directories.os, "rename", failing_rename)
    monkeypatch.setattr(directories, "_exchange", lambda one, other: False)
    with pytest.raises((ContainerError, KeyboardInterrupt)):
        write(copy, tensors("row"), layout="row", overwrite=True)
    assert snapshot(copy) == before
    assert names_in(copy.parent) == {"copy"}


def test_ctrl_c_after_the_swap_keeps_the_new_container(copy, monkeypatch):
    rename = os.rename

    def interrupted_rename(source, target):
        rename(source, target)
        if Path(target) == copy:
            raise KeyboardInterrupt

    monkeypatch.setattr(directories.os, "rename", interrupted_rename)
    monkeypatch.setattr(directories, "_exchange", lambda one, other: False)
    with pytest.raises(KeyboardInterrupt):
        write(copy, tensors("row"), layout="row", overwrite=True)
    assert Container.open(copy).summary() == "q4_k, row"
    assert names_in(copy.parent) == {"copy"}


def test_unwritable_destinations(tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    for destination, message in (
        (file, "a file is in the way"),
        (file / "below", "cannot be written"),
        (Path("/proc/nothing/model"), "cannot be written"),
    ):
        with pytest.raises(ContainerError, match=message) as caught:
            write(destination, {})
        assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == {"file": b"in the way"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["OSError", "SafetensorError"],
)
def test_full_disk_while_writing(error, tmp_path, monkeypatch):
    def full(*unused, **options):
        raise error

    monkeypatch.setattr(writer_module, "save_file", full)
    with pytest.raises(ContainerError, match=r"model: cannot be written \(.*No space left on device"):
        write(tmp_path / "model", tensors("zigzag"))
    assert names_in(tmp_path) == set()


def fill(out: ContainerWriter, added: list[str]) -> None:
    for name, values in tensors("zigzag").items():
        added.append(name)
        out.add(name, values)


@pytest.mark.parametrize("early", [True, False], ids=["before any work", "while writing"])
def test_full_disk(early, tmp_path, monkeypatch):
    """A real one, where this process may mount it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        if not early:
            roomy = shutil.disk_usage(tmp_path)
            monkeypatch.setattr(writer_module.shutil, "disk_usage", lambda path: roomy)
        added = []
        with pytest.raises(ContainerError, match="No space left on device"), writer(disk / "model") as out:
            fill(out, added)
        assert bool(added) is not early
        assert names_in(disk) == set()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = write(tmp_path / "model", tensors("zigzag")).path
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in path.iterdir()} == {0o640}


def test_check_destination_expands_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_destination("~/model") == tmp_path / "model"
