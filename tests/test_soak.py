"""bench/soak.py, shortened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[1] / "bench" / "soak.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_short_soak() -> None:
    command = [sys.executable, str(SOAK), "--tokens", "1000", "--loads", "20", "--kills", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "2 kills within" in done.stdout
    assert "tokens: " in done.stdout
    assert "20 loads" in done.stdout
