"""`spqt pull`: fetch a known model."""

from __future__ import annotations

import argparse
from typing import Any

from spqt_ti.cli import options
from spqt_ti.cli.output import megabytes, print_json
from spqt_ti.cli.signals import held_back


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "pull",
        help="fetch a model into the cache folder",
        description="Fetch a known model, or a Hugging Face hub id, into the cache folder and print its path. "
        "Without NAME: list the known models; spqt list shows what is stored. Other commands fetch by themselves what "
        "they are given.",
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="smollm2-135m, reglu-tiny (comes with the package), or a hub id: org/name, org/name:Q4_K_M for one of its "
        "GGUF files, org/name@REVISION",
    )
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the path of the fetched model, or the list. Raises CheckpointError when it cannot be had."""
    with held_back():
        from spqt_ti.sources import registry
    if arguments.name is None:
        _print_known(arguments.json)
        return
    fetch = registry.pull if arguments.name in registry.KNOWN else registry.resolve
    path = fetch(arguments.name)
    if arguments.json:
        print_json({"name": arguments.name, "path": str(path)})
    else:
        print(path)


def _print_known(as_json: bool) -> None:
    from spqt_ti.sources import registry

    models = registry.KNOWN.values()
    if as_json:
        known = [{"name": m.name, "about": m.about, "bytes": m.size, "fetched": m.is_there} for m in models]
        print_json({"models": known})
        return
    for model in models:
        print(f"{model.name}  {model.about}; {megabytes(model.size)}{', fetched' if model.is_there else ''}")
