"""Free memory as the system says it, and quantising that would not fit."""

from pathlib import Path

import pytest
import tiny_models

from spqt_ti.convert import quantize as module
from spqt_ti.errors import QuantizationError
from spqt_ti.memory import available_memory


def files(folder: Path, meminfo: str, **cgroup: str) -> tuple[Path, Path]:
    (folder / "meminfo").write_text(meminfo)
    for name, text in cgroup.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder / "meminfo", folder


@pytest.mark.parametrize(
    ("meminfo", "cgroup", "expected"),
    [
        ("MemTotal: 100 kB\nMemAvailable: 40 kB\n", {}, 40960),
        ("MemAvailable: 40 kB\n", {"memory_max": "max", "memory_current": "5"}, 40960),
        ("MemAvailable: 40 kB\n", {"memory_max": "5000", "memory_current": "1000"}, 4000),
        ("MemAvailable: 40 kB\n", {"memory_max": "5000", "memory_current": "6000"}, 0),
        ("", {}, None),
        ("MemAvailable: many\n", {}, None),
    ],
)
def test_the_smaller_of_both_counts(tmp_path: Path, meminfo: str, cgroup: dict[str, str], expected: int | None) -> None:
    assert available_memory(*files(tmp_path, meminfo, **cgroup)) == expected


def test_what_cannot_be_known_is_none(tmp_path: Path) -> None:
    assert available_memory(tmp_path / "none", tmp_path / "none") is None


def test_a_model_that_does_not_fit_is_refused_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_models.tiny_config()
    source = tiny_models.write_huggingface(tmp_path / "source", config, tiny_models.random_weights(config))
    monkeypatch.setattr(module, "available_memory", lambda: 1000)
    with pytest.raises(QuantizationError, match=r"needs about [\d.]+ MB of memory, and 0.0 MB are free"):
        module.quantize(source, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(module, "available_memory", lambda: None)
    module.quantize(source, tmp_path / "out", progress=False)
