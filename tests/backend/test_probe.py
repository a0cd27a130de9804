"""Trying every backend in a process of its own."""

from __future__ import annotations

import json
import sys

import pytest

from spqt_ti.backend import BACKENDS, probe
from spqt_ti.cli import main as cli


@pytest.fixture(scope="module")
def findings() -> dict[str, probe.Finding]:
    return {finding.backend: finding for finding in probe.probe_all()}


def test_the_cpu_works(findings):
    assert findings["cpu"].works
    assert not findings["cpu"].capabilities["groups"]


def test_each_works_or_says_why(findings):
    assert list(findings) == list(BACKENDS)
    for finding in findings.values():
        assert finding.works == (finding.device is not None) == (finding.capabilities is not None)
        assert finding.works or finding.reason.startswith(f"{finding.backend}: ")


def test_a_process_that_dies(monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'driver lost' >&2\nexit 134\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    finding = probe.probe("vulkan")
    assert finding.reason == "vulkan: the process ended with code 134: driver lost"


def test_the_command(monkeypatch, findings, capsys):
    monkeypatch.setattr(probe, "probe_all", lambda: list(findings.values()))
    assert cli.main(["backends"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*BACKENDS, "auto"]
    assert lines[0].split()[1] == "yes"
    assert cli.main(["backends", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["auto"] in BACKENDS
    assert {found["backend"]: found["reason"] for found in report["backends"]} == {
        name: finding.reason for name, finding in findings.items()
    }
