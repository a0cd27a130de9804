"""`spqt backends`: where this machine can compute, and why not elsewhere."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from spqt_ti.cli import options
from spqt_ti.cli.output import print_json
from spqt_ti.cli.signals import held_back

if TYPE_CHECKING:
    from spqt_ti.backend.probe import Finding


def add_parser(commands: Any) -> None:
    """Add this command to the parser's `commands`."""
    parser = commands.add_parser(
        "backends",
        help="show which backends this machine can use",
        description="Start every backend in a process of its own, compute something, and say what works and why not.",
    )
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Probe every backend and print what was found."""
    with held_back():
        from spqt_ti.backend import requested
        from spqt_ti.backend.probe import probe_all
    findings, auto = probe_all(), requested("auto")
    if arguments.json:
        print_json({"auto": auto, "backends": [dataclasses.asdict(finding) for finding in findings]})
        return
    for finding in findings:
        print(f"{finding.backend:8} {describe(finding)}")
    print(f"{'auto':8} takes {auto}")


def describe(finding: Finding) -> str:
    """What it is, or why it is not."""
    if finding.capabilities is None:
        return f"no   {finding.reason}"
    limits = finding.capabilities
    if not limits["groups"]:
        return f"yes  {finding.device}"
    return (
        f"yes  {finding.device}: {limits['memory'] / 1e9:.1f} GB, {limits['max_array_bytes'] / 1e9:.2f} GB an array, "
        f"{limits['shared_memory'] >> 10} KB shared by up to {limits['max_group']} threads"
    )
