"""What the documents say of the tree is true: modules, paths, links and tests that they name exist.

docs/log.md and CHANGELOG.md are history and may name what is gone.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_containers

from spqt_ti.cli.main import build_parser
from spqt_ti.model.architectures import ARCHITECTURES

ROOT = Path(__file__).parents[1]
HISTORY = {"docs/log.md", "CHANGELOG.md"}
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
present = pytest.mark.parametrize("document", [name for name in DOCUMENTS if name not in HISTORY])


def text(document: str) -> str:
    return (ROOT / document).read_text()


def tree() -> Iterator[str]:
    """Paths in README's tree, below the package: a line each, indented by two blanks per folder."""
    section = re.search(r"^spqt_ti/\n(.*?)^bench/", text("README.md"), re.MULTILINE | re.DOTALL)
    assert section, "README.md has no tree of spqt_ti/"
    way: list[str] = []
    for line in section[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        name, _, about = line.strip().partition(" ")
        assert about.strip(), f"README.md says nothing of {name}"
        way[depth:] = [name]
        yield "".join(way)


def test_readme_has_a_line_per_module() -> None:
    package = ROOT / "spqt_ti"
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if path.name != "__init__.py"}
    listed = [path for path in tree() if path.endswith(".py")]
    assert len(listed) == len(set(listed))
    assert sorted(set(listed) - modules) == [], "README's tree lists modules that are gone"
    assert sorted(modules - set(listed)) == [], "README's tree lacks modules: add a line that says what each is"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text(document)):
        assert (ROOT / document).parent.joinpath(target).exists(), target


@present
def test_paths_exist(document: str) -> None:
    """Of files and folders in backquotes or commands; those of the package may leave out its name."""
    for path in re.findall(r"(?<![\w./-])((?:[a-z_0-9.]+/)+[a-z_0-9]+\.(?:py|md|c|ll)\b)", text(document)):
        folders = (ROOT, ROOT / "spqt_ti", ROOT / "docs")
        assert path.startswith("texts/") or any((folder / path).exists() for folder in folders), path


@present
def test_named_tests_exist(document: str) -> None:
    tests = "\n".join(f"{path.name}\n{path.read_text()}" for path in (ROOT / "tests").rglob("*.py"))
    for name in re.findall(r"`(test_\w+)(?:\.py)?`", text(document)):
        assert re.search(rf"(def {name}\b|^{name}\.py)", tests, re.MULTILINE), name


@present
def test_commands_have_these_options(document: str) -> None:
    """Every command line of `spqt` in a block of code is one that the parser takes."""
    for block in re.findall(r"^```(?:sh)?\n(.*?)^```", text(document), re.MULTILINE | re.DOTALL):
        for line in re.findall(r"(?:^|&& |time )(spqt [a-z].*)$", block, re.MULTILINE):
            words = shlex.split(re.split(r" [|>] ", line)[0], comments=True)
            command = words[1 : words.index("...")] if "..." in words else words[1:]
            try:
                build_parser().parse_args(command)
            except (SystemExit, argparse.ArgumentError) as error:
                pytest.fail(f"{line}: {error}")


def test_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """On a tiny model, and a small matrix."""
    first, second = re.findall(r"^```python\n(.*?)^```", text("README.md"), re.MULTILINE | re.DOTALL)
    path = str(tiny_containers.container("gqa").path)
    exec(first.replace('"smollm2-135m"', repr(path)).replace("504, 3575, 282", "5, 35, 28"), {})
    assert capsys.readouterr().out
    values: dict = {}
    exec("import numpy as np; w, x = np.eye(40, 30, dtype=np.float32), np.ones(30, np.float32)\n" + second, values)
    assert values["y"].shape == (40,)


def test_table_of_architectures() -> None:
    """A line per row of the table, in its order."""
    lines = re.findall(r"^\| `(\w+)` \| (?:`(\w+)`)? ?\| \S", text("docs/architectures.md"), re.MULTILINE)
    assert lines == [(row.hf_class, row.gguf_name) for row in ARCHITECTURES.values()]


def test_glossary() -> None:
    """A line per word, no word twice."""
    words = re.findall(r"^\| ([^|]+?) \|", text("docs/glossary.md"), re.MULTILINE)[1:]
    assert len(words) == len(set(words)) >= 25
