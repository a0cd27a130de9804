"""The weight schemes by name."""

import importlib

from spqt_ti.errors import QuantizationError
from spqt_ti.formats.names import NAMES
from spqt_ti.formats.scheme import Scheme

__all__ = ["SCHEMES", "find"]

SCHEMES: dict[str, Scheme] = {name: importlib.import_module(f"spqt_ti.formats.{name}").SCHEME for name in NAMES}


def find(name: str) -> Scheme:
    """The scheme of this name. QuantizationError names those that there are."""
    if name not in SCHEMES:
        raise QuantizationError(f"unknown scheme {name!r}; there are: {', '.join(SCHEMES)}")
    return SCHEMES[name]
