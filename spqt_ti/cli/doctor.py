"""`spqt doctor`: what this machine has, whether kernels are right here, and what would be faster."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from spqt_ti.cli import options
from spqt_ti.cli.backends import describe
from spqt_ti.cli.output import megabytes, print_json
from spqt_ti.cli.signals import held_back

if TYPE_CHECKING:
    from spqt_ti.benchmark.checkup import Checkup


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "doctor",
        help="check this machine: versions, backends, memory bandwidth, a kernel against NumPy",
        description="Say what this machine has, multiply matrices by kernels and by NumPy, and name what would be "
        "faster. Exit code 1 where a kernel is wrong. Paste it into bug reports.",
    )
    parser.add_argument("--quick", action="store_true", help="leave out the backends, each of which takes seconds")
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Check and print. SpqtError where a kernel computes wrong results."""
    with held_back():
        from spqt_ti.benchmark.checkup import as_report, check_up, require_right
    checkup = check_up(arguments.quick)
    if arguments.json:
        print_json(as_report(checkup))
    else:
        _print(checkup)
    require_right(checkup)


def _print(checkup: Checkup) -> None:
    lines = [
        *checkup.versions.items(),
        ("CPU", f"{checkup.cpu}, {checkup.threads} threads"),
        ("memory free", "unknown" if checkup.memory is None else megabytes(checkup.memory)),
        ("cache folder", checkup.cache),
        *((f"reads, {count} threads", f"{rate / 1e9:.1f} GB/s") for count, rate in checkup.bandwidth.items()),
        *((about, "yes" if there else "no") for about, there in checkup.helpers.items()),
        *(
            (f"{test.scheme}, {test.layout}", f"{'right' if test.passed else 'WRONG'} (error {test.error:.1e})")
            for test in checkup.self_tests
        ),
        *((one.backend, describe(one)) for one in checkup.backends),
    ]
    width = max(len(name) for name, _ in lines) + 2
    for name, value in lines:
        print(f"{name:{width}}{value}")
    for one in checkup.advice:
        print(f"faster: {one}")
