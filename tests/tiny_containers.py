"""Tiny random Llamas, quantised: one per case of tiny_models.CASES, made once per session."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import tiny_models

from spqt_ti.backend import available_threads
from spqt_ti.model.container import Container
from spqt_ti.model.llama import Llama
from spqt_ti.model.quantize import quantize

THREADS = min(2, available_threads())


@functools.cache
def folder() -> Path:
    """A folder that lives as long as the session."""
    path = Path(tempfile.mkdtemp(prefix="spqt-tests-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def container(case: str, layout: str = "zigzag", dtype: str = "f32") -> Container:
    """The container of a case; from two shards where `dtype` is not f32."""
    return _container(case, layout, dtype)


def llama(case: str, threads: int = THREADS, dtype: str = "f32") -> Llama:
    """The runner of a case, with room for 64 tokens. Shared: reset it and set its thresholds before use."""
    return _llama(case, threads, dtype)


# The cache tells f(x) from f(x, default): all arguments are given here.
@functools.cache
def _container(case: str, layout: str, dtype: str) -> Container:
    config = tiny_models.tiny_config(**tiny_models.CASES[case])
    name = f"{case}-{layout}-{dtype}"
    source = tiny_models.write_huggingface(
        folder() / f"{name}-source",
        config,
        tiny_models.random_weights(config),
        dtype=dtype,
        shards=1 if dtype == "f32" else 2,
    )
    return quantize(source, folder() / name, layout=layout, progress=False)


@functools.cache
def _llama(case: str, threads: int, dtype: str) -> Llama:
    return Llama(container(case, dtype=dtype), threads=threads, context=64)
