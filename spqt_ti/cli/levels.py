"""`0,0.25,0.5` on the command line."""

from __future__ import annotations

import argparse


def levels(text: str) -> list[float]:
    """Sparsities between 0 and 0.99; argparse turns anything else into a line about wrong usage."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 0.25,0.5, not {text!r}") from None
    if not all(0 <= level <= 0.99 for level in found):
        raise argparse.ArgumentTypeError(f"sparsities must be between 0 and 0.99, not {text}")
    return found
