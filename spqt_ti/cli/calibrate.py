"""`spqt calibrate`: a text into policies."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from spqt_ti.cli.levels import levels
from spqt_ti.cli.output import print_json
from spqt_ti.cli.signals import held_back
from spqt_ti.errors import PolicyError

METHODS = ("uniform", "teal", "wina", "wisparse")  # spelled out here too, so that --help needs no NumPy


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "calibrate",
        help="make a sparsity policy from a text",
        description="Run a text through the model and choose which inputs decoding may skip. One pass serves every "
        "level; with several, each file is named after its level (policy.json becomes policy-0.25.json). What is "
        "done is kept on the way: after Ctrl-C the same command goes on where it was.",
    )
    parser.add_argument("model", metavar="MODEL", help="as for generate")
    parser.add_argument("--method", choices=METHODS, default="uniform", help="(default: %(default)s)")
    parser.add_argument("--sparsity", type=levels, required=True, metavar="S,S,...", help="levels, 0 to 0.99")
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text to calibrate on")
    parser.add_argument("--tokens", type=int, default=20000, metavar="N", help="use at most (default: %(default)s)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="policy to write")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of wisparse's search (default: %(default)s)")
    parser.add_argument("--generations", type=int, default=10, metavar="N", help="wisparse (default: %(default)s)")
    parser.add_argument("--offspring", type=int, default=16, metavar="N", help="wisparse (default: %(default)s)")
    parser.add_argument("--checkpoints", metavar="DIR", help="folder for what is done (default: in the cache folder)")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per CPU)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Calibrate, write the policies and say where."""
    for name in ("seed", "generations", "offspring"):
        least = 1 if name == "offspring" else 0
        if getattr(arguments, name) < least:
            raise PolicyError(f"--{name} must be {least} or more, not {getattr(arguments, name)}")
    with held_back():
        from spqt_ti.api import load
        from spqt_ti.sparsity.methods import calibrate, checkpoint_folder
        from spqt_ti.sparsity.search.evolution import Search
        from spqt_ti.texts import read_text
    text = read_text(arguments.text)
    model = load(arguments.model, threads=arguments.threads)
    start = time.perf_counter()
    search = Search(arguments.generations, arguments.offspring, seed=arguments.seed)
    folder = checkpoint_folder(model.container, text, arguments.tokens)
    if arguments.checkpoints is not None:
        folder = Path(arguments.checkpoints)
    output, files = Path(arguments.output), []
    try:
        make = calibrate(
            arguments.method, model.llama, model.container, model.tokenizer, text, arguments.tokens, folder, search
        )
        for level in arguments.sparsity:
            several = len(arguments.sparsity) > 1
            path = output.with_name(f"{output.stem}-{level:g}{output.suffix}") if several else output
            make(level).save(path)
            files.append(str(path))
    except KeyboardInterrupt:
        print(f"spqt: what is done is in {folder}; the same command goes on from there", file=sys.stderr)
        raise
    seconds = time.perf_counter() - start
    if arguments.json:
        print_json({"method": arguments.method, "files": files, "seconds": seconds})
    else:
        print(f"{', '.join(files)}: {arguments.method}, {seconds:.1f} s")
