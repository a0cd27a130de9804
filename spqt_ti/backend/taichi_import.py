"""The only module that imports Taichi, or, with SPQT_TAICHI=quadrants, the package that carries it on."""

import os

from spqt_ti.errors import BackendError

PACKAGE = os.environ.get("SPQT_TAICHI", "taichi")
os.environ.setdefault("ENABLE_TAICHI_HEADER_PRINT", "0")
os.environ.setdefault("TI_SKIP_VERSION_CHECK", "ON")  # Taichi would tell its server of each day's first start
# Taichi 1.7.4 ends the process where HOME is not set, though it keeps nothing there: the home folder that Python finds
# without it, or a place where nothing can be made.
_home = os.path.expanduser("~")
os.environ.setdefault("HOME", _home if os.path.isabs(_home) else os.devnull)

if PACKAGE == "taichi":
    import taichi as ti
elif PACKAGE == "quadrants":
    try:
        import quadrants as ti  # prints a line, which has no switch, on import
    except ImportError as error:
        raise BackendError("SPQT_TAICHI=quadrants, which is not installed: pip install quadrants") from error
else:
    raise BackendError(f"SPQT_TAICHI must be taichi or quadrants, not {PACKAGE!r}")

__all__ = ["PACKAGE", "ti"]
