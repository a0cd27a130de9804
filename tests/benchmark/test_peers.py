"""bench/peers: tables over llama.cpp's best type, and what is said of a peer that does not start."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from spqt_ti.sparsity.search.divergence import log_softmax
from spqt_ti.texts import sha256

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


def test_scores_of_a_peer(peers: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What runs in a peer's interpreter: negative log-likelihoods, and KL from the reference's log-probabilities."""
    code = importlib.import_module("programs")._SCORE
    random = np.random.default_rng(0)
    logits, following = 9 * random.standard_normal((4, 30)), [3, 0, 29, 7]
    wanted = log_softmax(random.standard_normal((4, 30)))
    np.save(tmp_path / "2.npy", wanted.astype(np.float32))
    found: dict[str, Any] = {}
    monkeypatch.setattr(sys, "argv", ["-c", "model", "text", "8", "1", "2", "out", str(tmp_path)])
    exec(code, found)
    nll, kl = found["score"](logits, following, 2)
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(nll, -logp[range(4), following], rtol=1e-12)
    np.testing.assert_allclose(kl, (np.exp(wanted) * (wanted - logp)).sum(axis=1), rtol=1e-5)
    found["reference"] = ""
    assert found["score"](logits, following, 2)[1].size == 0


def test_the_fastest_at_a_quality(peers: ModuleType) -> None:
    frontier = importlib.import_module("frontier")
    rows = [
        frontier.Row("llama.cpp", "Q8_0", 0.002, speeds=[90.0, 100.0, 900.0]),
        frontier.Row("ik_llama.cpp", "Q4_0", 0.15, speeds=[200.0]),
        frontier.Row("spqt_ti", "q4_k gptq, dense", 0.07, speeds=[220.0]),
        frontier.Row("spqt_ti", "q4_k gptq, teal 30%", 0.2, speeds=[260.0]),
    ]
    assert [row.weights for row in frontier.frontier(rows)] == ["Q8_0", "q4_k gptq, dense", "q4_k gptq, teal 30%"]
    assert frontier.at_kl(rows, 0.15).weights == "q4_k gptq, dense"
    assert frontier.at_kl(rows, 0.001) is None
    assert frontier.comparisons(rows, [0.01, 0.2]) == [
        "KL 0.01: none of ours is that near to the source",
        "KL 0.2: q4_k gptq, teal 30% 260 tokens/s, ik_llama.cpp Q4_0 200: 1.30x",
    ]


def test_a_reference_of_something_else(peers: ModuleType, tmp_path: Path) -> None:
    frontier = importlib.import_module("frontier")
    (tmp_path / "text").write_text("a text")
    arguments = argparse.Namespace(folder=tmp_path, text=tmp_path / "text", context=8, windows=2)
    with pytest.raises(SystemExit, match="makes the folder"):
        frontier.check_reference(arguments)
    (tmp_path / "of.json").write_text(json.dumps({"text_sha256": sha256("a text"), "context": 8, "windows": 3}))
    with pytest.raises(SystemExit, match=r"unlike in \['windows'\]"):
        frontier.check_reference(arguments)
    arguments.windows = 3
    frontier.check_reference(arguments)
