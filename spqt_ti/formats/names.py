"""The table of weight schemes: a new one is one more row here. No imports, because `spqt --help` reads it.

A name is that of the scheme's module in this folder, which has its SCHEME, and of its modules in folders of kernels
(kernels/scheme_modules.py).
"""

__all__ = ["NAMES"]

NAMES = (
    "q2_k",
    "q3_k",
    "q4_k",
    "q5_k",
    "q6_k",
    "q8_0",
)
