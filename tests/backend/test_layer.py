"""The backend layer is the only place that knows backends: everything else asks its table of capabilities."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import spqt_ti
from spqt_ti.backend import BACKENDS

PACKAGE = Path(spqt_ti.__file__).parent
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if PACKAGE / "backend" not in path.parents]
NAMES = {*BACKENDS, "auto", "x64", "arm64", "gpu", "opengl", "dx11", "gles"}
# What chooses between workers and groups of threads: the runner's engine and the kernels' drivers.
CHOOSERS = {"model/engines.py", "kernels/drivers.py"}


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def attributes_of_ti(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ti":
            yield node.attr


def where(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_taichi_is_imported_in_one_place() -> None:
    for path in FILES:
        for node in nodes(path):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {module.split(".")[0] for module in modules} & {"taichi", "quadrants"}, where(path)


def test_taichi_is_started_in_one_place() -> None:
    for path in FILES:
        assert not {"init", "reset", *NAMES} & set(attributes_of_ti(path)), where(path)


def test_nothing_branches_on_a_backend() -> None:
    """No comparison with a backend's name, and no match."""
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.Compare | ast.Match):
                found = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)} & NAMES
                assert not found, f"{where(path)}:{node.lineno}: {found}"


def test_capabilities_choose_engine_and_drivers_only() -> None:
    asking = {
        where(path)
        for path in FILES
        if any(
            isinstance(node, ast.Attribute) and node.attr == "groups" and "capabilities" in ast.dump(node)
            for node in nodes(path)
        )
    }
    assert asking == CHOOSERS


def test_what_only_some_backends_or_packages_have() -> None:
    """quadrants has no ti.graph, AOT and the like; subgroups are SPIR-V's, warps CUDA's."""
    using = {where(path) for path in FILES if {"graph", "aot", "argpack", "Texture"} & set(attributes_of_ti(path))}
    assert using == {"kernels/simt/submission.py"}
    for path in FILES:
        simt = {n.attr for n in nodes(path) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "ti.simt"}
        assert simt <= {"block"}, where(path)
