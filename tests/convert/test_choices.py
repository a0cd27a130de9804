"""Schemes and layouts by class of matrix, as a user writes them."""

from __future__ import annotations

import pytest

from spqt_ti.container import CLASSES
from spqt_ti.convert.choices import parse_storage
from spqt_ti.errors import QuantizationError


def described(*arguments: str) -> dict[str, str]:
    return {kind: str(storage) for kind, storage in parse_storage(*arguments).items()}


USUAL = dict.fromkeys(("qkv", "o", "gate_up", "down"), "q4_k, zigzag")
DENSE = {"embedding": "q8_0, row", "head": "q8_0, row"}


@pytest.mark.parametrize(
    ("scheme", "layout", "changes"),
    [
        ("q4_k", "zigzag", {}),
        ("q4_k,down=q6_k,head=q6_k", "zigzag", {"down": "q6_k, zigzag", "head": "q6_k, zigzag"}),
        (" o=q8_0 , qkv=q6_k", "zigzag", {"o": "q8_0, zigzag", "qkv": "q6_k, zigzag"}),
        ("q6_k", "row", dict.fromkeys(USUAL, "q6_k, row")),
        ("q4_k", "zigzag,gate_up=row", {"gate_up": "q4_k, row"}),
        ("q4_k,head=q8_0", "zigzag", {}),
        ("q4_k", "head=zigzag", {"head": "q8_0, zigzag"}),
        ("head=q4_k", "head=row", {"head": "q4_k, row"}),
    ],
)
def test_choices(scheme, layout, changes):
    assert described(scheme, layout) == USUAL | DENSE | changes
    assert tuple(described()) == CLASSES


@pytest.mark.parametrize(
    ("scheme", "layout", "message"),
    [
        ("q1_k", "zigzag", "unknown scheme 'q1_k'; there are: q2_k, q3_k, q4_k, q5_k, q6_k, q8_0"),
        ("", "zigzag", "unknown scheme ''"),
        ("q4_k,", "zigzag", "unknown scheme ''"),
        ("q4_k,down=q1_k", "zigzag", "unknown scheme 'q1_k'"),
        ("q4_k,ffn=q6_k", "zigzag", "no scheme can be chosen for 'ffn', only for: qkv, o, gate_up, down, head"),
        ("q4_k,embedding=q6_k", "zigzag", "no scheme can be chosen for 'embedding'"),
        ("q4_k,q6_k", "zigzag", "'q6_k' comes after others; name the class"),
        ("q4_k", "down=column", "unknown layout 'column'; there are: zigzag, row"),
        ("q4_k", "=row", "no layout can be chosen for ''"),
    ],
)
def test_what_there_is_not_is_refused(scheme, layout, message):
    with pytest.raises(QuantizationError, match=message):
        parse_storage(scheme, layout)
