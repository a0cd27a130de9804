"""`spqt list` and `spqt rm`: what the cache folders hold, what takes space, and how to have it back."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spqt_ti.cache import cache_dir
from spqt_ti.cli import options
from spqt_ti.cli.output import megabytes, print_json, print_rows
from spqt_ti.cli.signals import held_back
from spqt_ti.errors import CheckpointError
from spqt_ti.tables import Table

_OTHER = {
    "calibrations": "thresholds and activations of calibrations",
    "kernels": "compiled kernels",
    "sources": "hashes of large files",
    "tuning": "what spqt tune measured",
}


@dataclass(frozen=True)
class Stored:
    """Something that takes space: `kind` is source, hub, quantised, or a folder of the cache; `made_from` of a
    quantised model names its source.
    """

    name: str
    kind: str
    bytes: int
    path: str
    made_from: str = ""

    def remove(self) -> None:
        """Delete it, unless another process was faster. A model's name is free at once, for whoever makes it anew."""
        if self.kind == "hub":
            from spqt_ti.sources import hub

            for repository in hub.cached_repositories():
                if repository.repository == self.name:
                    hub.remove(repository)
        elif Path(self.path).is_dir():
            with held_back():
                from spqt_ti.container.directories import discard
            with contextlib.suppress(FileNotFoundError):
                discard(Path(self.path))
        else:
            Path(self.path).unlink(missing_ok=True)


def add_parser(commands: Any) -> None:
    """Add `list` and `rm` to the parser's `commands`."""
    listing = commands.add_parser(
        "list",
        help="list stored models and what else takes space",
        description="List fetched models, models in the hub library's cache, which other programs share, their "
        "quantised copies, and what else is in the cache folder.",
    )
    options.add_formats(listing)
    listing.set_defaults(run=_list)
    removing = commands.add_parser(
        "rm",
        help="remove stored models",
        description="Remove what spqt list names. A fetched model goes with its quantised copies; what is still needed "
        "is fetched, quantised or compiled again.",
    )
    removing.add_argument("names", metavar="NAME", nargs="+", help="a name of spqt list, known name or hub id")
    removing.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    options.add_json(removing)
    removing.set_defaults(run=_remove)


def _list(arguments: argparse.Namespace) -> None:
    found = stored()
    rows = [[megabytes(one.bytes), *_shown(one)] for one in found]
    own = sum(one.bytes for one in found if one.kind != "hub")
    table = Table(["size", "kind", "name"], rows)
    print_rows(arguments, found, table, f"{megabytes(own)} in {cache_dir()}", *_hub_note(found))


def _shown(one: Stored) -> list[str]:
    """Kind and name, in the width of a terminal."""
    return ["cache", f"{one.name} ({one.kind})"] if one.name in _OTHER else [one.kind, one.name]


def _hub_note(found: list[Stored]) -> list[str]:
    models = [one for one in found if one.kind == "hub"]
    if not models:
        return []
    folder = Path(models[0].path).parent
    return [f"{megabytes(sum(one.bytes for one in models))} of models in {folder}, which other programs share"]


def _remove(arguments: argparse.Namespace) -> None:
    everything = stored()
    chosen: dict[str, Stored] = {}
    for name in arguments.names:
        chosen |= {one.path: one for one in _named(name, everything)}
    said = "would remove" if arguments.dry_run else "removed"
    for one in chosen.values():
        if not arguments.dry_run:
            one.remove()
        if not arguments.json:
            print(f"{said} {one.name} ({one.kind}, {megabytes(one.bytes)})")
    if arguments.json:
        print_json([dataclasses.asdict(one) for one in chosen.values()])


def _named(name: str, everything: list[Stored]) -> list[Stored]:
    """What a name stands for, a source with its quantised copies. CheckpointError lists the names there are."""
    with held_back():
        from spqt_ti.sources import hub, registry
    known, hub_id = registry.KNOWN.get(name), hub.parse(name)
    names = {name, known.path.name if known else name, hub_id.repository if hub_id else name}
    found = [one for one in everything if one.name in names]
    if not found:
        there = ", ".join(one.name for one in everything) or "nothing"
        raise CheckpointError(f"{name}: not stored here (spqt list: {there})")
    sources = {one.name.rpartition("/")[2] for one in found if one.kind in ("source", "hub")} | {
        one.name for one in found if one.kind in ("source", "hub")
    }
    files = {file.rpartition("/")[2] for one in found if one.kind == "hub" for file in _gguf_files(one.name)}
    return found + [one for one in everything if one.made_from in sources | files and one not in found]


def _gguf_files(repository: str) -> list[str]:
    from spqt_ti.sources import hub

    cached = (one for one in hub.cached_repositories() if one.repository == repository)
    return [file for one in cached for file in one.files if file.endswith(".gguf")]


def stored() -> list[Stored]:
    """Everything, sources first."""
    return [*_sources(), *_hub(), *_quantised(), *_others()]


def _sources() -> Iterator[Stored]:
    for path in _entries("models"):
        yield Stored(path.name, "source", _size(path), str(path))


def _hub() -> Iterator[Stored]:
    with held_back():
        from spqt_ti.sources import hub
    for one in hub.cached_repositories():
        yield Stored(one.repository, "hub", one.size, str(one.path))


def _quantised() -> Iterator[Stored]:
    with held_back():
        from spqt_ti.container import MANIFEST, Container
        from spqt_ti.errors import ContainerError
    for path in _entries("quantized"):
        try:
            made_from = Container.open(path, verify=False).source.name if (path / MANIFEST).is_file() else "damaged"
        except ContainerError:
            made_from = "damaged"
        yield Stored(path.name, "quantised", _size(path), str(path), made_from)


def _others() -> Iterator[Stored]:
    for name in _OTHER:
        path = cache_dir() / name
        if path.is_dir():
            yield Stored(name, _OTHER[name], _size(path), str(path))


def _entries(folder: str) -> list[Path]:
    """What a folder of the cache holds, but hidden files of work in progress."""
    path = cache_dir() / folder
    return sorted(entry for entry in path.iterdir() if not entry.name.startswith(".")) if path.is_dir() else []


def _size(path: Path) -> int:
    """Bytes of the files in a folder, or of one; those that another process removes meanwhile count nothing."""
    inside = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    total = 0
    for file in inside if path.is_dir() else [path]:
        with contextlib.suppress(FileNotFoundError):
            total += file.lstat().st_size
    return total
