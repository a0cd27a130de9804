"""Positions in error messages of kernels: those of Taichi, at the right call."""

import pytest

from spqt_ti.backend import start, ti


@ti.func
def add_one(x):
    return x + 1


def test_an_error_names_its_own_position() -> None:
    """The second use of a function fails where the first one did not, and the message shows both lines."""
    start()

    @ti.kernel
    def add(a: ti.template(), b: ti.i32) -> ti.i32:
        one = add_one(b)
        return one + add_one(a)

    assert add(2, 3) == 7
    with pytest.raises(ti.TaichiCompilationError) as caught:
        add("text", 3)
    message = str(caught.value)
    assert "return one + add_one(a)" in message
    assert "def add_one(x)" in message
    assert "one = add_one(b)" not in message


def test_positions_are_formatted_once() -> None:
    """What is remembered is what Taichi says."""
    start()
    remembered = ti.lang.ast.ast_transformer_utils.ASTTransformerContext.get_pos_info
    seen = []

    @ti.kernel
    def twice(a: ti.i32) -> ti.i32:
        return add_one(add_one(a))

    original = remembered.__wrapped__
    context = ti.lang.ast.ast_transformer_utils.ASTTransformerContext
    context.get_pos_info = lambda self, node: seen.append((remembered(self, node), original(self, node))) or seen[-1][0]
    try:
        assert twice(1) == 3
    finally:
        context.get_pos_info = remembered
    assert len(seen) > len(set(seen)) > 3
    assert all(known == fresh for known, fresh in seen)
