"""Tiny random Llamas, quantised: the cases of tiny_models.CASES, made once per session."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import tiny_models

from spqt_ti import api
from spqt_ti.backend import available_threads, requested
from spqt_ti.container import Container
from spqt_ti.convert.quantize import quantize as quantize_here
from spqt_ti.model.runner import Llama

THREADS = min(2, available_threads())

# Every case is in here. Some share a model, because kernels are compiled for each shape, which takes 7 s on the CPU,
# where those that share the shape of "gqa" stand alone, and 20 s on lavapipe.
_ON_CPU = (
    ("gqa",),
    ("mha", "tied"),
    ("mqa", "wide_heads"),
    ("narrow_heads", "biases"),
    ("multiple_of_256",),
    ("llama3_rope", "bamboo"),
    ("linear_rope", "gelu_tanh"),
    ("mistral", "relu"),
    ("qwen2", "gelu"),
    ("qwen3", "relu2"),
)
_ON_GPUS = (
    ("gqa",),
    ("mha", "tied", "wide_heads", "linear_rope", "gelu_tanh", "mistral"),
    ("mqa", "narrow_heads", "biases", "llama3_rope", "relu"),
    ("multiple_of_256", "bamboo"),
    ("qwen2", "gelu"),
    ("qwen3", "relu2"),
)
MODELS = {
    "+".join(names): {key: value for name in names for key, value in tiny_models.CASES[name].items()}
    for names in (_ON_CPU if requested() == "cpu" else _ON_GPUS)
}
# Architectures that differ from Llama in what kernels are compiled for: tests/model/test_architectures.py runs them.
ARCHITECTURES = {name: tiny_models.CASES[name] for name in tiny_models.ARCHITECTURES}
assert set("+".join(MODELS).split("+")) | set(ARCHITECTURES) == set(tiny_models.CASES)


def model_with(case: str) -> str:
    """The one of MODELS, or of ARCHITECTURES, that has a case of tiny_models.CASES."""
    return next(name for name in [*MODELS, *ARCHITECTURES] if case in name.split("+"))


@functools.cache
def folder() -> Path:
    """A folder that lives as long as the session."""
    path = Path(tempfile.mkdtemp(prefix="spqt-tests-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def quantize(source: Path, destination: Path, layout: str = "zigzag", scheme: str = "q4_k") -> Container:
    """The container of a source model; on a GPU's backend, made by another process."""
    if requested() == "cpu":
        return quantize_here(source, destination, layout=layout, scheme=scheme, progress=False)
    return api.quantize_elsewhere(source, destination, layout, scheme)


def container(model: str, layout: str = "zigzag", dtype: str = "f32") -> Container:
    """The container of one of MODELS; from two shards where `dtype` is not f32."""
    return _container(model, layout, dtype)


def llama(model: str, threads: int = THREADS, dtype: str = "f32", exact: bool = True) -> Llama:
    """The runner of one of MODELS, with room for 64 tokens. Shared: reset it and set its thresholds before use."""
    return _llama(model, threads, dtype, exact)


# The cache tells f(x) from f(x, default): all arguments are given here.
@functools.cache
def _container(model: str, layout: str, dtype: str) -> Container:
    config = tiny_models.tiny_config(**(MODELS | ARCHITECTURES)[model])
    name = f"{model}-{layout}-{dtype}"
    source = tiny_models.write_huggingface(
        folder() / f"{name}-source",
        config,
        tiny_models.random_weights(config),
        dtype=dtype,
        shards=1 if dtype == "f32" else 2,
    )
    return quantize(source, folder() / name, layout)


@functools.cache
def _llama(model: str, threads: int, dtype: str, exact: bool) -> Llama:
    return Llama(container(model, dtype=dtype), threads=threads, context=64, exact=exact)
