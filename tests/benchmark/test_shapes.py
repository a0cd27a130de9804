"""Shapes to measure: the paper's, models', and those that a user writes."""

from __future__ import annotations

import pytest

from spqt_ti.benchmark.shapes import NAMED, PAPER, parse_shapes
from spqt_ti.errors import GenerationError


def test_the_papers_fifteen() -> None:
    assert len(set(PAPER)) == 15
    assert {m for m, _ in PAPER} == {2048, 4096, 8192}
    assert {k for _, k in PAPER} == {1024, 2048, 4096, 8192, 16384}


def test_layers_of_models() -> None:
    assert NAMED["llama-3-8b"] == [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]
    assert NAMED["smollm2-135m"] == [(960, 576), (576, 576), (3072, 576), (576, 1536)]


def test_lists_without_repetitions() -> None:
    assert parse_shapes("300x40,paper,2048x1024") == [(300, 40), *PAPER]


@pytest.mark.parametrize("text", ["", "paper,", "4096", "0x5", "5x0", "axb", "-1x5", "4096X4096"])
def test_refused(text: str) -> None:
    with pytest.raises(GenerationError, match="neither ROWSxCOLS nor one of paper, smollm2-135m"):
        parse_shapes(text)
