"""What a folder of kernels has for a weight scheme: a module of the scheme's name.

So a scheme is a row in formats/names.py and files; no folder keeps a table of its own.
"""

import functools
import importlib
import importlib.util
from typing import Any

from spqt_ti.errors import QuantizationError
from spqt_ti.formats.schemes import SCHEMES

__all__ = ["find_part", "schemes_in"]


def schemes_in(package: str) -> list[str]:
    """Names of the schemes that a package (its dotted name) has a module for, in the order of the table."""
    return [name for name in SCHEMES if importlib.util.find_spec(f"{package}.{name}") is not None]


@functools.cache
def find_part(package: str, scheme: str, part: str) -> Any | None:
    """`part` of the module that a package has for the scheme of this name; None where it has no such module.

    QuantizationError where the module lacks it.
    """
    if importlib.util.find_spec(f"{package}.{scheme}") is None:
        return None
    module = importlib.import_module(f"{package}.{scheme}")
    if not hasattr(module, part):
        raise QuantizationError(f"{module.__name__} has no {part}; a scheme's module there ends with it")
    return getattr(module, part)
