"""What messages of errors may hold."""

from __future__ import annotations

from spqt_ti.errors import CheckpointError


def test_the_middle_of_a_very_long_message_is_left_out():
    message = str(CheckpointError("model.gguf: " + "x" * 100_000 + " is unknown"))
    assert len(message) < 2000
    assert message.startswith("model.gguf: x")
    assert message.endswith("x is unknown")
    assert str(CheckpointError("short")) == "short"
