"""Calibration windows of the package: what they are, and that they are taken instead of drawing."""

from pathlib import Path

import numpy as np
import pytest
import tiny_models

from spqt_ti import quantization
from spqt_ti.convert.quantize import open_source
from spqt_ti.convert.stored_windows import stored_windows
from spqt_ti.sources import registry


def test_those_of_smollm2() -> None:
    known = registry.KNOWN["smollm2-135m"]
    assert isinstance(known, registry.KnownModel)
    windows = np.array(stored_windows(known.sha256))
    assert windows.shape == (32, 512)
    assert (windows[:, 0] == 1).all()  # bos
    assert 0 <= windows.min() <= windows.max() < 49152
    assert len(np.unique(windows)) > 2000
    assert len({tuple(window) for window in windows}) == 32


def test_another_source_has_none() -> None:
    assert stored_windows("00") == []


def test_are_taken_instead_of_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_models.tiny_config()
    source = open_source(tiny_models.write_huggingface(tmp_path / "tiny", config, tiny_models.random_weights(config)))
    stored = np.random.default_rng(0).integers(0, config.vocab_size, (4, 32)).tolist()
    drawn = [[9] * 32]
    monkeypatch.setattr(quantization, "stored_windows", lambda _: stored)
    monkeypatch.setattr(quantization, "open_quantized", lambda *_: None)
    monkeypatch.setattr(quantization, "Llama", lambda *_, **__: None)
    monkeypatch.setattr(quantization, "sampled_windows", lambda *_: drawn)
    text = "One text or another, which has tokens enough for a few windows. " * 20
    assert quantization._windows(source, None, 3, 32, 0) == stored[:3]
    mixed = quantization._windows(source, text, 4, 32, 0)
    assert mixed[2:] == stored[:2]
    assert mixed[:2] != stored[:2]
    assert quantization._windows(source, None, 3, 32, 1) == drawn  # another seed
    assert quantization._windows(source, None, 5, 32, 0) == drawn  # more than there are
    assert quantization._windows(source, None, 3, 16, 0) == drawn  # shorter ones
