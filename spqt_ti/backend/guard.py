"""Taichi's runtime takes one thread at a time, and a forked process does not have its threads.

Both are seen to where every launch and every wait passes, so that no caller has to think of it: threads wait for one
another, and in a forked process the first launch raises an error instead of waiting for ever.
"""

import ctypes
import functools
import os
import threading
from collections.abc import Callable
from typing import Any

from spqt_ti.backend.taichi_import import ti
from spqt_ti.errors import BackendError

LOCK = threading.RLock()  # held by the thread whose launch it is

_in_use = False  # the runtime is up: a process that is forked from now on cannot use it
_forked = False


def forked() -> bool:
    """True in a process that was forked after the runtime had started."""
    return _forked


def check_process() -> None:
    """Raise BackendError in a process that was forked after the runtime had started."""
    if _forked:
        raise BackendError(
            "this process was forked from one in which the kernels' runtime was up, and does not have its threads: "
            'load the model after the fork, or start processes with multiprocessing.get_context("spawn")'
        )


def install() -> None:
    """Guard launches, from before the first one on. May be called several times."""
    global _in_use
    if not _in_use:
        kernel, program = ti.lang.kernel_impl.Kernel, ti.lang.impl.PyTaichi
        kernel.__call__ = _guarded(kernel.__call__)
        program.sync = _guarded(program.sync)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_note_fork)
    _in_use = True


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if _forked:
            check_process()
        with LOCK:
            return function(*arguments, **keywords)

    return call


def _note_fork() -> None:
    """In the child: nothing more may be launched, and the runtime is never taken down, which would wait for threads."""
    global _forked
    _forked = True
    program = ti.lang.impl.get_runtime().prog
    if program is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(program))
