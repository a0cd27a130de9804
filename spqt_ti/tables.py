"""Tables as commands print them: aligned columns on a terminal, Markdown into a pipe or a file, CSV when asked for."""

from __future__ import annotations

import csv
import io
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

GAP = "  "  # between columns on a terminal


@dataclass(frozen=True)
class Table:
    """Titles and rows of cells, all of one length. What no terminal should get (control characters) is blank."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]] = field(default_factory=list)

    def markdown(self) -> str:
        """A Markdown table."""
        return "\n".join([markdown_header(self.titles), *(markdown_row(row) for row in self.rows)])

    def aligned(self) -> str:
        """Columns under their titles, numbers to the right; a title takes lines rather than widen its column."""
        columns = [[_printable(row[i]) for row in self.rows] for i in range(len(self.titles))]
        widths = [
            max(len(text) for text in (*column, *(title.split() or [""])))
            for title, column in zip(self.titles, columns, strict=True)
        ]
        numeric = [all(cell[:1] in "+-.0123456789" for cell in column) for column in columns]
        heads = [textwrap.wrap(title, width) for title, width in zip(self.titles, widths, strict=True)]
        height = max(map(len, heads))
        lines = [[""] * (height - len(head)) + head for head in heads]

        def line(cells: Sequence[str]) -> str:
            placed = zip(cells, widths, numeric, strict=True)
            return GAP.join(c.rjust(w) if right else c.ljust(w) for c, w, right in placed).rstrip()

        rule = "-" * (sum(widths) + len(GAP) * (len(widths) - 1))
        return "\n".join([*map(line, zip(*lines, strict=True)), rule, *map(line, zip(*columns, strict=True))])


def markdown_header(titles: Sequence[str]) -> str:
    """Titles and the rule under them."""
    return f"{markdown_row(titles)}\n|{'---|' * len(titles)}"


def markdown_row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(_printable(cell).replace("|", "\\|") for cell in cells) + " |"


def _printable(cell: str) -> str:
    return "".join(c if c.isprintable() else " " for c in cell)


def on_terminal() -> bool:
    """True where stdout is read by a person."""
    return sys.stdout.isatty()


def print_table(table: Table, *notes: str) -> None:
    """The table on stdout, in the form that fits where that goes; then the notes, a paragraph of lines."""
    print(table.aligned() if on_terminal() else table.markdown())
    print_notes(*notes)


def print_notes(*notes: str) -> None:
    """Lines under a table, wrapped where a terminal would break words."""
    if notes:
        print()
    for note in notes:
        print(wrapped(note, "  "))


def wrapped(line: str, indent: str) -> str:
    """A line wrapped between words where stdout is a terminal; `indent`: before the lines that this makes."""
    if not on_terminal():
        return line
    return textwrap.fill(line, shutil.get_terminal_size().columns, subsequent_indent=indent, break_long_words=False)


class GrowingTable:
    """A table whose rows are measured one after the other. A pipe gets each at once; a terminal, whose columns need all
    of them, gets them at the end of the `with` block, also after an error or Ctrl-C.
    """

    def __init__(self, titles: Sequence[str]) -> None:
        self._titles = titles
        self._rows: list[Sequence[str]] = []

    def __enter__(self) -> GrowingTable:
        if not on_terminal():
            print(markdown_header(self._titles), flush=True)
        return self

    def add(self, cells: Sequence[str]) -> None:
        """The next row."""
        self._rows.append(cells)
        if not on_terminal():
            print(markdown_row(cells), flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if on_terminal() and self._rows:
            print(Table(self._titles, self._rows).aligned())


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a line of names. Nested values get columns of their own: `skipped.0.qkv`."""
    flat = [dict(_flatten(row)) for row in rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        items: Iterator[tuple[Any, Any]] = iter(value.items())
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        yield name, value
        return
    for key, part in items:
        yield from _flatten(part, f"{name}.{key}" if name else str(key))
