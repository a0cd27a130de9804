"""Which blocks of the package's readers an input reaches, at the price of one store per block.

Modules are compiled with `__reached__[n] = 1` at the head of every function, branch, loop and handler. So it runs on
every Python, at nearly full speed; a trace function would make readers ten times slower.
"""

from __future__ import annotations

import ast
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

_MOST_BLOCKS = 1 << 16
# Kernels are read by Taichi from their source, and no reader is among them.
_NOT = ("spqt_ti.kernels", "spqt_ti.backend", "spqt_ti.model.cpu", "spqt_ti.model.simt", "spqt_ti.cli")
_NAME = "__reached__"

reached = bytearray(_MOST_BLOCKS)
_used = 0  # blocks that are marked so far: only these are counted after each input


def install() -> None:
    """Mark the blocks of every module of the package that is imported from now on."""
    if "spqt_ti.sources" in sys.modules:
        raise RuntimeError("install the coverage before the package is imported")
    sys.meta_path.insert(0, _Finder())


class Seen:
    """Blocks that any input has reached so far."""

    def __init__(self) -> None:
        self.blocks = 0

    def grew(self) -> bool:
        """Whether a block is new since the last call."""
        now = reached.count(1, 0, _used)
        new, self.blocks = now > self.blocks, now
        return new


class _Finder:
    """Finds modules of the package as Python does, and has them loaded with marks."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: types.ModuleType | None = None) -> Any:
        if not name.startswith("spqt_ti") or name.startswith(_NOT):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> types.CodeType:
        path = self.get_filename(fullname)
        tree = _Marks().visit(ast.parse(self.get_data(path), path))
        code: types.CodeType = compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)
        return code

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__[_NAME] = reached
        super().exec_module(module)


class _Marks(ast.NodeTransformer):
    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if not isinstance(node, (ast.Module, ast.ClassDef)):
            for field in ("body", "orelse", "finalbody"):
                block = getattr(node, field, None)
                if isinstance(block, list) and block:
                    block.insert(0, _mark(block[0]))
        return node


def _mark(before: ast.stmt) -> ast.stmt:
    global _used
    block = _used
    _used += 1
    (mark,) = ast.parse(f"{_NAME}[{block}] = 1").body
    for node in ast.walk(mark):
        ast.copy_location(node, before)
    return mark
