"""`spqt serve` as a user starts it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_containers

from spqt_ti.cli import main, serve

httpx = pytest.importorskip("httpx", reason="httpx is not installed: pip install '.[server,test]'")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install '.[server]'")


def test_it_serves_until_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    path = str(tiny_containers.container("gqa").path)
    options = ["--port", "0", "--context", "64", "--exact", "--threads", str(tiny_containers.THREADS), "--name", "tiny"]
    options += ["--prefix-cache", str(tmp_path / "prefix")]
    command = [sys.executable, "-m", "spqt_ti", "serve", path, *options, "--api-key-file", str(tmp_path / "key")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if "http://" in line)
            address = re.findall(r"http://127\.0\.0\.1:\d+/", line)[0]
            assert httpx.get(address).status_code == 200
            body = {"prompt": "Hello", "max_tokens": 3}
            assert httpx.post(f"{address}v1/completions", json=body).status_code == 401
            headers = {"Authorization": "Bearer secret"}
            found = httpx.post(f"{address}v1/completions", json=body, headers=headers, timeout=60)
            assert found.json()["usage"]["completion_tokens"] == 3
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
            assert process.wait(30) in (0, 130)
            assert "Traceback" not in rest
            assert (tmp_path / "prefix").stat().st_size
        finally:
            process.kill()


def test_small_packets_are_sent_at_once() -> None:
    """asyncio switches Nagle's algorithm off for sockets with this number alone."""
    with serve._listen("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_a_taken_port_is_said_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with serve._listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main.main(["serve", str(tiny_containers.container("gqa").path), "--port", port]) == 1
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--max-seconds", "0"], "seconds must be above 0"), (["--allow-origin", "here"], "an origin is"),
     (["--api-key-file", "/nowhere"], "/nowhere"), (["--offer", "x=/nowhere"], "/nowhere"),
     (["--sparsity", "2"], "between 0 and 0.99")],
)  # fmt: skip
def test_bad_options(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["serve", "nothing", *options]) == 1
    assert message in capsys.readouterr().err


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main.main(["serve", "nothing"]) == 1
    assert "pip install 'spqt-ti[server]'" in capsys.readouterr().err
