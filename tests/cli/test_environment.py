"""Surroundings that are unlike a user's desktop: no home folder, a cache that cannot be written, odd locales."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import container_files
import platformdirs
import pytest
from tiny_models import random_weights, tiny_config, write_gguf

from spqt_ti import cache
from spqt_ti.cli.main import main
from spqt_ti.errors import CacheError
from spqt_ti.model.tuning import Tuning

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("environment") / "modèle 日本"
    return container_files.write(path, container_files.tensors()).path


def run(*arguments: object, home: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process that knows no more of its surroundings than it is told."""
    told = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment}
    if home is not None:
        told["HOME"] = home
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=told, encoding="utf-8", timeout=300)


@pytest.mark.parametrize("folder", ["~/.cache/spqt-ti", ".cache/spqt-ti"])
def test_the_cache_is_never_below_the_current_folder(folder, monkeypatch, capsys):
    """What is in it is run."""
    monkeypatch.delenv("SPQT_CACHE_DIR", raising=False)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: folder)
    with pytest.raises(CacheError, match=r"not absolute; set HOME, or SPQT_CACHE_DIR"):
        cache.cache_dir()
    assert main(["pull", "smollm2-135m"]) == 1
    assert capsys.readouterr().err.startswith("spqt: error: no cache folder: ")
    assert Tuning.load("a device").shapes == ()  # what can do without, does


def test_a_home_that_nobody_has(monkeypatch, capsys):
    monkeypatch.setenv("SPQT_CACHE_DIR", "~no-such-user/cache")
    assert main(["pull", "smollm2-135m"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("spqt: error: no cache folder: ")
    assert "Set SPQT_CACHE_DIR" in line


@pytest.mark.skipif(sys.platform == "win32", reason="HOME means nothing there")
def test_without_a_home_and_a_cache_that_can_be_written(tmp_path):
    """Taichi ended the process: on import without HOME, and at its end without a folder for kernels."""
    source = write_gguf(tmp_path / "m.gguf", tiny_config(), random_weights(tiny_config()))
    (tmp_path / "temporary").mkdir()
    places = {"TMPDIR": str(tmp_path / "temporary"), "SPQT_CACHE_DIR": os.devnull + "/x"}
    done = run("-m", "spqt_ti", "quantize", source, tmp_path / "quantised", **places)
    assert done.returncode == 0, done.stderr
    assert "kernels are compiled anew at each start" in done.stderr
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("where", ["nowhere", "file/below"])
def test_a_cache_that_cannot_be_made(where, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    place = tmp_path / where if where == "file/below" else Path(os.devnull) / where
    monkeypatch.setenv("SPQT_CACHE_DIR", str(place))
    assert main(["pull", "smollm2-135m"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(place) in line
    assert "SPQT_CACHE_DIR" in line


def test_a_locale_of_ascii(container, tmp_path):
    """Paths and prompts are bytes there; what stdout cannot show is a replacement, and an escape in JSON."""
    done = run("-m", "spqt_ti", "info", container, home=str(tmp_path), **ASCII)
    assert done.returncode == 0, done.stderr
    assert "mod??le" in done.stdout
    done = run("-m", "spqt_ti", "info", container, "--json", home=str(tmp_path), **ASCII)
    assert json.loads(done.stdout)["path"].encode("utf-8", "surrogateescape").decode() == str(container)


PROMPT = """
import argparse, sys
from spqt_ti.cli.generate import _prompt
print(ascii(_prompt(argparse.Namespace(prompt=sys.argv[1], also_prompt=None, file=None))))
"""


@pytest.mark.parametrize("locale", [ASCII, {"LC_ALL": "C"}, {}], ids=["ascii", "c", "none"])
def test_a_prompt_is_utf_8_in_every_locale(locale, tmp_path):
    done = run("-c", PROMPT, "é 日本", home=str(tmp_path), **locale)
    assert done.stdout == ascii("é 日本") + "\n", done.stderr
