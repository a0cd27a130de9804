"""bench/peers: tables over llama.cpp's best type, and what is said of a peer that does not start."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "bench" / "peers"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("processes")


def test_ratios_are_over_the_best(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decode = importlib.import_module("decode")
    monkeypatch.setattr(decode, "versions", lambda _: ["llama-cpp-python 0"])
    rows = [
        decode.Row("llama.cpp", "Q4_1, the source", [50.0], [300.0], 52.0, 2.0),
        decode.Row("ik_llama.cpp", "Q4_0", [100.0], [200.0], 60.0, 3.0),
        decode.Row("ik_llama.cpp", "IQ4_KT", missing="long story\nno such module"),
        decode.Row("spqt_ti", "Q4_K zigzag, dense", [150.0], [600.0], 61.0, 3.0),
        decode.Row("spqt_ti", "Q4_K zigzag, 50% sparse", [200.0], [], 100.0, 5.0),
    ]
    options = {
        "prefill": 512,
        "text": "folder/text",
        "model": "m",
        "tokens": 8,
        "rounds": 1,
        "windows": 2,
        "context": 64,
    }
    decode.print_rows(rows, argparse.Namespace(**options, threads=2, peer_python="python", ik_python="python"))
    out = capsys.readouterr().out
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()]
    assert [row[3] for row in table[2:7]] == ["0.50x", "1.00x", "", "1.50x", "2.00x"]
    assert [row[5] for row in table[2:7]] == ["1.00x", "0.67x", "", "2.00x", ""]
    assert [row[6] for row in table[2:7]] == ["52.00 ± 2.00", "60.00 ± 3.00", "", "61.00 ± 3.00", "100.00 ± 5.00"]
    assert table[4][:3] == ["ik_llama.cpp", "IQ4_KT", "not measured"]
    assert "not measured, ik_llama.cpp IQ4_KT: no such module" in out


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit('libggml is broken')", "libggml is broken"),
        ("raise ModuleNotFoundError(\"No module named 'llama_cpp'\")", "pip install 'spqt-ti[peers]'"),
        ("raise ModuleNotFoundError(\"No module named 'ik_llama_cpp'\")", "ik-llama-cpp-python is not there"),
    ],
)
def test_a_peer_that_does_not_start(peers: ModuleType, code: str, said: str) -> None:
    with pytest.raises(SystemExit, match="did not start") as caught, peers.server([sys.executable, "-c", code]):
        pass
    assert said in str(caught.value)
    with pytest.raises(SystemExit) as caught:
        peers.run([sys.executable, "-c", code])
    assert said in str(caught.value)


def test_answers(peers: ModuleType) -> None:
    code = "print('ready', flush=True)\nfor line in __import__('sys').stdin: print(len(line), 2.5, flush=True); break"
    with peers.server([sys.executable, "-c", code]) as process:
        assert peers.ask(process, "four") == [5.0, 2.5]
        with pytest.raises(SystemExit, match="no answer to 'five'"):
            peers.ask(process, "five")
