"""The only module that imports Taichi, or, with SPQT_TAICHI=quadrants, the package that carries it on."""

import os

from spqt_ti.errors import BackendError

PACKAGE = os.environ.get("SPQT_TAICHI", "taichi")
os.environ.setdefault("ENABLE_TAICHI_HEADER_PRINT", "0")

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
