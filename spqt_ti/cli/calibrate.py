"""`spqt calibrate`: a text into policies."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from typing import Any

from spqt_ti.cli import options
from spqt_ti.cli.execution import add_execution, executor_of
from spqt_ti.cli.output import print_json
from spqt_ti.cli.signals import held_back
from spqt_ti.paths import expanded

TOKENS, QUICK_TOKENS = 20000, 2048  # of a text
METHODS = ("uniform", "teal", "wina", "wisparse", "svd")  # spelled out here too, so that --help needs no NumPy


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "calibrate",
        help="make a sparsity policy from a text",
        description="Run a text through the model and choose which inputs decoding may skip. One pass serves every "
        "level; with several, each file is named after its level (policy.json becomes policy-0.25.json). What is "
        "done is kept on the way: after Ctrl-C the same command goes on where it was.",
    )
    options.add_model(parser)
    parser.add_argument("--method", choices=METHODS, default="uniform", help="(default: %(default)s)")
    options.add_levels(parser, "levels, 0 to 0.99; for svd of the neurons that are off", required=True)
    options.add_text(parser, "to calibrate on")
    parser.add_argument(
        "--quick", action="store_true", help="a rough policy in a tenth of the time, to see what a method does"
    )
    parser.add_argument(
        "--tokens",
        type=options.count,
        metavar="N",
        help=f"use at most (default: {TOKENS}, with --quick {QUICK_TOKENS})",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="policy to write")
    search = parser.add_argument_group("wisparse's search")
    search.add_argument("--seed", type=options.count_or_none, default=0, metavar="N", help="default: %(default)s")
    search.add_argument("--generations", type=options.count_or_none, metavar="N", help="default: 10, with --quick 1")
    search.add_argument("--offspring", type=options.count, metavar="N", help="default: 16, with --quick 4")
    predictors = parser.add_argument_group("svd's predictors of neurons")
    predictors.add_argument("--rank", type=options.count, metavar="R", help="default: a 16th of the hidden size")
    predictors.add_argument("--executor", choices=("sequential", "parallel"), default="sequential")
    predictors.add_argument(
        "--attention", type=options.level, default=0.0, metavar="S", help="inputs of qkv and o to skip by thresholds"
    )
    predictors.add_argument("--no-whitening", action="store_true", help="truncate gate by its own singular values")
    predictors.add_argument("--bias", choices=("none", "global", "neuron"), default="neuron")
    predictors.add_argument("--importance", choices=("gate", "gate*up", "full"), default="full")
    add_execution(
        parser, "where windows of the text run, and wisparse's budgets are evaluated (default: in this process)"
    )
    parser.add_argument("--checkpoints", metavar="DIR", help="folder for what is done (default: in the cache folder)")
    options.add_threads(parser)
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Calibrate, write the policies and say where."""
    with held_back():
        from spqt_ti.api import load
        from spqt_ti.errors import ExecutionError
        from spqt_ti.model.predictors import Executor
        from spqt_ti.parallel.study import ModelReference
        from spqt_ti.sparsity.methods import calibrate, checkpoint_folder
        from spqt_ti.sparsity.predictors.settings import Bias, Importance, PredictorSettings
        from spqt_ti.sparsity.search.evolution import QUICK, Search
        from spqt_ti.sparsity.search.swept import Elsewhere
        from spqt_ti.texts import read_text
    spread = arguments.jobs is not None or arguments.cluster is not None
    if spread and arguments.method == "svd":
        raise ExecutionError("--jobs and --cluster are not for svd, which runs in this process")
    text = read_text(arguments.text)
    model = load(arguments.model, threads=arguments.threads)
    start = time.perf_counter()
    asked = {name: getattr(arguments, name) for name in ("seed", "generations", "offspring")}
    sizes = {name: value for name, value in asked.items() if value is not None}
    search = dataclasses.replace(QUICK if arguments.quick else Search(), **sizes)
    predictor = PredictorSettings(
        arguments.rank, not arguments.no_whitening, Bias(arguments.bias), Importance(arguments.importance),
        Executor(arguments.executor), arguments.attention,
    )  # fmt: skip
    tokens = arguments.tokens or (QUICK_TOKENS if arguments.quick else TOKENS)
    folder = checkpoint_folder(model.container, text, tokens, search)
    if arguments.checkpoints is not None:
        folder = expanded(arguments.checkpoints)
    output, files = expanded(arguments.output), []
    try:
        with contextlib.ExitStack() as stack:
            elsewhere = None
            if spread:
                reference = ModelReference.of(model.container, arguments.shared)
                elsewhere = Elsewhere(stack.enter_context(executor_of(arguments, model.container)), reference)
            make = calibrate(
                arguments.method, model.llama, model.container, model.tokenizer, text, tokens, folder, search,
                predictor, elsewhere,
            )  # fmt: skip
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
