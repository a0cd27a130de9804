"""The weight schemes by name. A new one is one more row."""

from spqt_ti.errors import QuantizationError
from spqt_ti.formats import q4_k, q6_k, q8_0
from spqt_ti.formats.scheme import Scheme

__all__ = ["SCHEMES", "find"]

SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in (q4_k.SCHEME, q6_k.SCHEME, q8_0.SCHEME)}


def find(name: str) -> Scheme:
    """The scheme of this name. QuantizationError names those that there are."""
    if name not in SCHEMES:
        raise QuantizationError(f"unknown scheme {name!r}; there are: {', '.join(SCHEMES)}")
    return SCHEMES[name]
