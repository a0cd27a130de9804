"""Every attack ends in an error of the project, at once. `make(folder)` of a script here makes its files anywhere."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import pytest

from spqt_ti.errors import SpqtError
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.sources.open import open_checkpoint

ATTACKS = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("test_"))


def _use(path: Path) -> str:
    checkpoint = open_checkpoint(path)
    tokenizer = Tokenizer(checkpoint.tokenizer_json, checkpoint.config, checkpoint.chat_template)
    return tokenizer.chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("name", ATTACKS)
def test_refused(name, tmp_path):
    for path in importlib.import_module(f"attacks.{name}").make(tmp_path):
        start = time.process_time()
        with pytest.raises(SpqtError):
            _use(path)
        assert time.process_time() - start < 20  # of what would take hours, or all memory
    assert not (tmp_path / "ran").exists()
