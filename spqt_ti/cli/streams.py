"""stdin, stdout and stderr where the caller has closed them (`spqt info >&-`)."""

from __future__ import annotations

import os
import sys


def open_streams() -> None:
    """Open what is closed on the null device.

    A file that is opened later would otherwise get the number 1 or 2, and receive what is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
