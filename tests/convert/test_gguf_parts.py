"""A GGUF model in parts, as the `gguf` library writes and names them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import random_weights, tiny_config, write_gguf

from spqt_ti import api
from spqt_ti.cli import main as cli
from spqt_ti.container import Container
from spqt_ti.errors import CheckpointError

CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The first of the parts."""
    return write_gguf(tmp_path / "model.gguf", CONFIG, WEIGHTS, kind="Q8_0", tensors_per_part=6)


def test_parts_are_one_model(first: Path, tmp_path: Path) -> None:
    """From the command line to the stored bytes, which are those of the same model in one file."""
    parts = sorted(path.name for path in tmp_path.glob("*.gguf"))
    assert len(parts) > 2
    assert parts == [f"model-{number:05}-of-{len(parts):05}.gguf" for number in range(1, len(parts) + 1)]
    whole = write_gguf(tmp_path / "whole.gguf", CONFIG, WEIGHTS, kind="Q8_0")
    found = []
    for source in (first, whole):
        made = tmp_path / f"from-{source.stem}"
        assert cli.main(["quantize", str(source), str(made)]) == 0
        found.append(Container.open(made))
    ours, expected = found
    assert sorted(ours.names()) == sorted(expected.names())
    for name in expected.names():
        np.testing.assert_array_equal(ours.read(name), expected.read(name))
    assert (ours.tokenizer_json, ours.config) == (expected.tokenizer_json, expected.config)


def test_a_changed_part_is_another_model(first: Path, tmp_path: Path) -> None:
    """The cached copy is of all parts, not of the first alone."""
    before = api.cached_copy(first)
    last = max(tmp_path.glob("*.gguf"))
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    assert api.cached_copy(first) != before


def test_what_is_said_of_other_parts(first: Path, tmp_path: Path) -> None:
    second = sorted(tmp_path.glob("*.gguf"))[1]
    with pytest.raises(CheckpointError, match=f"open the first, {first.name}"):
        api.open_quantized(second)
    second.unlink()
    with pytest.raises(CheckpointError, match=f"{second.name} is not beside it"):
        api.open_quantized(first)
