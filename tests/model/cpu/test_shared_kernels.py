"""Models of one shape share their kernels.

Taichi keeps what it compiles: kernels per load would be several megabytes, and seconds, each time.
"""

import numpy as np
import tiny_containers

from spqt_ti.model.cpu.decode_kernel import make_decode_kernel
from spqt_ti.model.cpu.prefill_kernels import make_prefill_kernels
from spqt_ti.model.runner import Llama


def load() -> Llama:
    return Llama(tiny_containers.container("gqa"), threads=tiny_containers.THREADS, context=64)


def made() -> list[int]:
    return [make.cache_info().misses for make in (make_decode_kernel, make_prefill_kernels)]


def test_a_second_load_compiles_nothing() -> None:
    first = load()
    before = made()
    second = load()
    assert made() == before
    rows = [model.prefill([1, 2, 3]) for model in (first, second)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert first.decode_greedy(5, 4) == second.decode_greedy(5, 4)


def test_another_context_has_kernels_of_its_own() -> None:
    load()
    before = made()
    Llama(tiny_containers.container("gqa"), threads=tiny_containers.THREADS, context=80)
    assert made() == [count + 1 for count in before]
