"""The structure of the package, read from its syntax trees: nothing is imported here.

The layers are the table under "Layers" in docs/design.md: the drawing is the rule. Imports inside functions count, and
so do imports for type checkers.
"""

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "spqt_ti"
MOST_LINES = 500
MOST_POSITIONAL = 10
COMPILERS = {"taichi", "quadrants"}


@functools.cache
def modules() -> dict[str, Path]:
    """Path by dotted name without the package's; the package itself is ""."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text())


@functools.cache
def layers() -> dict[str, int]:
    """Height by module prefix, from the table in docs/design.md: its first row is the top."""
    text = (ROOT / "docs/design.md").read_text()
    section = re.search(r"^## Layers\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert section, "docs/design.md has no section 'Layers'"
    rows = [line.split("|")[2] for line in section[1].splitlines() if line.startswith("|")][2:]
    return {
        name.replace("/", ".").removesuffix(".py"): len(rows) - number
        for number, row in enumerate(rows)
        for name in re.findall(r"`([^`]+)`", row)
    }


def layer_of(module: str) -> int:
    """Height of a module: that of its longest prefix in the table."""
    parts = module.split(".") if module else ["api"]  # the package itself offers what api.py has
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in layers():
            return layers()[prefix]
    raise AssertionError(f"{module} is in no layer: add it to the table under 'Layers' in docs/design.md")


@functools.cache
def imported(module: str) -> tuple[tuple[str, int], ...]:
    """(name, line) of everything that a module imports, wherever in it: full names, modules of the package as such."""
    found = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found += [(name.name, node.lineno) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{module}:{node.lineno}: relative import"
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            for name in node.names:
                full = f"{node.module}.{name.name}"
                found.append((full if own(full) in modules() else node.module, node.lineno))
    return tuple(found)


def own(name: str) -> str | None:
    """The module's name inside the package, or None where it is somebody else's."""
    if name == PACKAGE:
        return ""
    return name.removeprefix(PACKAGE + ".") if name.startswith(PACKAGE + ".") else None


def edges(module: str) -> Iterator[tuple[str, int]]:
    """(module, line) of the imports from the package."""
    for name, line in imported(module):
        target = own(name)
        if target is not None:
            assert target in modules(), f"{module}:{line} imports {name}, which does not exist"
            yield target, line


def top_level(module: str) -> set[str]:
    """First names of what a module imports from elsewhere."""
    return {name.split(".")[0] for name, _ in imported(module)} - {PACKAGE}


def test_imports_only_go_down():
    upward = [
        f"{module}:{line} imports {target}"
        for module in modules()
        for target, line in edges(module)
        if layer_of(target) > layer_of(module)
    ]
    assert not upward, upward


def test_every_name_in_the_table_is_a_module():
    assert not sorted(set(layers()) - set(modules()))


def test_only_the_backend_imports_a_compiler():
    importers = {module for module in modules() if top_level(module) & COMPILERS}
    assert importers == {"backend.taichi_import"}


def test_formats_need_numpy_only():
    for module in modules():
        if module.split(".")[0] == "formats":
            assert top_level(module) - sys.stdlib_module_names <= {"numpy"}, module


@pytest.mark.parametrize("package", ["formats", "sources", "container", "model.config", "model.sites", "errors"])
def test_runs_without_a_compiler(package):
    """Files can be read, and models described, on a machine without Taichi."""
    reached: set[str] = set()
    todo = [module for module in modules() if f"{module}.".startswith(f"{package}.")]
    assert todo
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += [target for target, _ in edges(module)]
            todo += packages(module)
    assert not [module for module in reached if module.split(".")[0] == "backend"]


def test_kernels_know_nothing_of_models():
    allowed = {"kernels", "backend", "formats", "errors", "cache", "threads"}
    for module in modules():
        if module.split(".")[0] == "kernels":
            assert {target.split(".")[0] for target, _ in edges(module)} <= allowed, module


def packages(module: str) -> list[str]:
    """Packages whose __init__ runs before the module; that of spqt_ti imports on demand only."""
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def test_no_cycles():
    """Depth first; a module that is met again on the way down closes a cycle."""
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module in done:
            return
        for target in (place for name, _ in edges(module) for place in (name, *packages(name))):
            if target != module and not f"{module}.".startswith(f"{target}."):
                visit(target, (*way, module))
        done.add(module)

    for module in modules():
        visit(module, ())


def test_modules_are_short():
    lengths = {module: len(path.read_text().splitlines()) for module, path in modules().items()}
    long = {module: length for module, length in lengths.items() if length > MOST_LINES}
    assert not long, f"too many lines: {long}"


def functions(node: ast.AST, way: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(qualified name, definition) of all functions in a tree, nested ones too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{way}.{child.name}" if way else child.name
            if not isinstance(child, ast.ClassDef):
                yield name, child
            yield from functions(child, name)
        else:
            yield from functions(child, way)


def positional(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_signatures_are_short():
    counts: dict[str, int] = {}
    for module in modules():
        for name, function in functions(tree(module)):
            if positional(function) > MOST_POSITIONAL:
                key = f"{module}:{name}"
                counts[key] = max(positional(function), counts.get(key, 0))
    assert not counts, f"too many positional parameters: {counts}"
