"""Commands that run a module of this package in a process of its own.

`python -m` imports from the current folder first, so a `numpy.py` in a downloaded model's folder would run.
"""

from __future__ import annotations

import sys
from pathlib import Path

# sys.path[0] is the current folder here. The package's own folder comes last: it is where this process found it.
_START = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; module, root = sys.argv[1:3]; del sys.argv[1:3]; "
    "sys.path += [root] if root not in sys.path else []; "
    "import runpy; runpy.run_module(module, run_name='__main__', alter_sys=True)"
)


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs `module` as a program with `arguments` and imports nothing from the current folder."""
    root = str(Path(__file__).resolve().parents[1])
    return [sys.executable, "-c", _START, module, root, *arguments]
