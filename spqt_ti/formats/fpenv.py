"""The C floating-point environment, for results that have to be exact to the last bit.

Starting Taichi switches the calling thread to flush-to-zero (measured: `ti.init`, 1.7.4), and so do some libraries
built with -ffast-math when they load. NumPy then loses denormal results, and the quantisers their equality with ggml on
very small values.
"""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

__all__ = ["gradual_underflow"]

_ENVIRONMENT_BYTES = 128  # larger than any fenv_t


@contextlib.contextmanager
def gradual_underflow() -> Iterator[None]:
    """Run the body with C's default environment (denormals kept, round to nearest), then put the caller's back.

    Works on the calling thread. Where the C library offers no such functions, the body runs as things are.
    """
    try:
        library = ctypes.CDLL(None)
        save, load = library.fegetenv, library.fesetenv
        default = _default_environment(library)
    except (AttributeError, OSError, TypeError, ValueError):
        yield
        return
    saved = ctypes.create_string_buffer(_ENVIRONMENT_BYTES)
    save(saved)
    load(default)
    try:
        yield
    finally:
        load(saved)


def _default_environment(library: ctypes.CDLL) -> ctypes.c_void_p:
    """FE_DFL_ENV: the address of a variable on macOS, the address -1 in glibc and musl."""
    if sys.platform == "darwin":
        return ctypes.c_void_p(ctypes.addressof(ctypes.c_byte.in_dll(library, "_FE_DFL_ENV")))
    return ctypes.c_void_p(-1)
