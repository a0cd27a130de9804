"""GPTQ that was stopped goes on after its last finished layer, and makes the same file."""

from pathlib import Path

import numpy as np
import pytest
import tiny_models

from spqt_ti.container import Container
from spqt_ti.convert.choices import parse_storage
from spqt_ti.convert.finished_layers import FinishedLayers
from spqt_ti.convert.gptq_model import GptqQuantizer
from spqt_ti.convert.quantize import open_source, quantize_checkpoint
from spqt_ti.errors import ContainerError
from spqt_ti.sources.checkpoint import Checkpoint

MADE_OF = {"seed": 1}
WINDOWS = np.random.default_rng(0).integers(0, 90, (3, 100)).tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    config = tiny_models.tiny_config()
    weights = tiny_models.random_weights(config)
    return open_source(tiny_models.write_huggingface(tmp_path_factory.mktemp("source") / "tiny", config, weights))


class StoppedError(Exception):
    pass


def make(checkpoint: Checkpoint, destination: Path, finished: FinishedLayers | None, stop: str = "") -> Container:
    """A container; StoppedError at the matrix `stop`, with which nothing is tidied up that a kill would leave."""
    quantizer = GptqQuantizer(checkpoint, WINDOWS, finished=finished)

    def until(matrix, w):
        if matrix.name == stop:
            raise StoppedError
        return quantizer(matrix, w)

    storage = parse_storage("q8_0", "zigzag")
    return quantize_checkpoint(checkpoint, destination, storage, "tiny", quantizer=until, progress=False)


@pytest.mark.parametrize("stop", ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"])
def test_goes_on_after_the_last_finished_layer(checkpoint: Checkpoint, tmp_path: Path, stop: str) -> None:
    finished = FinishedLayers(tmp_path / "layers", MADE_OF)
    assert finished.windows() is None
    finished.begin(WINDOWS)
    with pytest.raises(StoppedError):
        make(checkpoint, tmp_path / "made", finished, stop)
    again = FinishedLayers(tmp_path / "layers", MADE_OF)
    assert again.count == int(stop.split(".")[2])
    assert again.windows() == WINDOWS
    again.begin(WINDOWS)
    made = make(checkpoint, tmp_path / "made", again)
    assert again.count == 2
    assert made.fingerprint == make(checkpoint, tmp_path / "uninterrupted", None).fingerprint
    again.remove()
    assert not (tmp_path / "layers").exists()


def test_is_begun_anew_for_anything_else(tmp_path: Path) -> None:
    first = FinishedLayers(tmp_path / "layers", MADE_OF)
    first.begin(WINDOWS)
    first.add([np.arange(5, dtype=np.uint8)] * 4, np.ones((3, 100, 2), np.float32))
    assert FinishedLayers(tmp_path / "layers", MADE_OF).count == 1
    other = FinishedLayers(tmp_path / "layers", {"seed": 2})
    assert other.count == 0
    assert other.windows() is None
    other.begin(WINDOWS)
    assert FinishedLayers(tmp_path / "layers", MADE_OF).count == 0
    assert not list((tmp_path / "layers").glob("layer-*"))


def test_without_states_no_layer_counts(tmp_path: Path) -> None:
    finished = FinishedLayers(tmp_path / "layers", MADE_OF)
    finished.begin(WINDOWS)
    finished.add([np.arange(5, dtype=np.uint8)] * 4, np.ones((3, 100, 2), np.float32))
    (tmp_path / "layers" / "states-1.npy").unlink()
    assert FinishedLayers(tmp_path / "layers", MADE_OF).count == 0


@pytest.mark.parametrize("name", ["layer-0.npy", "sizes-0.npy", "states-1.npy"])
@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "of another layer"])
def test_a_damaged_file_becomes_no_weights(tmp_path: Path, name: str, how: str) -> None:
    finished = FinishedLayers(tmp_path / "layers", MADE_OF)
    finished.begin(WINDOWS)
    for value in (0, 1):
        finished.add([np.full(5, value, np.uint8)] * 4, np.full((3, 100, 2), value, np.float32))
        if value == 0:
            kept = {path.name: path.read_bytes() for path in finished.folder.iterdir()}
    path = finished.folder / name.replace("1", "2")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    others = kept[name] if "2" in path.name else (finished.folder / name.replace("0", "1")).read_bytes()
    path.write_bytes({"flipped": raw, "cut": raw[:-40], "empty": b"", "of another layer": others}[how])
    again = FinishedLayers(tmp_path / "layers", MADE_OF)
    with pytest.raises(ContainerError, match=r"damaged .*its digest is another.*; delete the folder"):
        again.matrices(0), again.states((3, 100, 2))


def test_damaged_windows_are_drawn_anew(tmp_path: Path) -> None:
    finished = FinishedLayers(tmp_path / "layers", MADE_OF)
    finished.begin(WINDOWS)
    path = tmp_path / "layers" / "windows.npy"
    raw = bytearray(path.read_bytes())
    raw[-40] ^= 1
    path.write_bytes(raw)
    assert FinishedLayers(tmp_path / "layers", MADE_OF).windows() is None


def test_states_of_another_shape(tmp_path: Path) -> None:
    finished = FinishedLayers(tmp_path / "layers", MADE_OF)
    finished.begin(WINDOWS)
    finished.add([np.zeros(5, np.uint8)] * 4, np.ones((3, 100, 2), np.float32))
    with pytest.raises(ContainerError, match=r"states are float32 \[3, 100, 2\]"):
        finished.states((3, 100, 4))
