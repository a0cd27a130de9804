"""Which scheme and layout each class of matrix gets, from what a user writes: `q4_k,down=q6_k,head=q6_k`."""

from __future__ import annotations

from collections.abc import Sequence

from spqt_ti.container.matrices import CLASSES, DEFAULT_STORAGE, Storage
from spqt_ti.errors import QuantizationError
from spqt_ti.formats.layout import LAYOUTS
from spqt_ti.formats.schemes import SCHEMES, find
from spqt_ti.model.sites import SITES

__all__ = ["parse_choices", "parse_storage"]


def parse_storage(scheme: str = "q4_k", layout: str = "zigzag") -> dict[str, Storage]:
    """Class of matrix -> scheme and layout. The first item of each text is that of the four sites, those with `=` are
    of one class.

    The embedding is Q8_0 in row layout, because a token's row is read as a whole; so is the head unless it is chosen.
    A head of another scheme is stored in zigzag layout unless that is chosen too. Raises QuantizationError, which says
    what there is, for anything else.
    """
    schemes, layouts = parse_choices("scheme", scheme, list(SCHEMES)), parse_choices("layout", layout, LAYOUTS)
    found = dict(DEFAULT_STORAGE)
    for site in SITES:
        found[site] = Storage(find(schemes.get(site, "q4_k")), layouts.get(site, "zigzag"))
    head = find(schemes.get("head", found["embedding"].scheme.name))
    found["head"] = Storage(head, layouts.get("head", "row" if head == found["embedding"].scheme else "zigzag"))
    return found


def parse_choices(what: str, text: str, known: Sequence[str]) -> dict[str, str]:
    """Class of matrix -> what is chosen for it in `text`, one of `known`."""
    chosen: dict[str, str] = {}
    classes = [name for name in CLASSES if name != "embedding"]
    for number, item in enumerate(text.split(",")):
        name, equals, value = item.strip().rpartition("=")
        if value not in known:
            raise QuantizationError(f"unknown {what} {value!r}; there are: {', '.join(known)}")
        if not equals:
            if number:
                raise QuantizationError(f"{what} {value!r} comes after others; name the class of matrix: CLASS={value}")
            chosen |= dict.fromkeys(SITES, value)
        elif name not in classes:
            raise QuantizationError(f"no {what} can be chosen for {name!r}, only for: {', '.join(classes)}")
        else:
            chosen[name] = value
    return chosen
