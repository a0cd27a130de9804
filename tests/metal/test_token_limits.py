"""The kernels of a token and of prefill at a real model's sizes: translated, and within what the runner asks for."""

from __future__ import annotations

import numpy as np
import pytest
from metal import limits
from metal.tasks import Kernel
from metal.translation import checked, translate

from spqt_ti.kernels.simt.attention import CacheShape
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.constants import Constants
from spqt_ti.model.selectors import SelectorMap
from spqt_ti.model.simt import arrays
from spqt_ti.model.simt.chunk_kernels import make_chunk_kernels
from spqt_ti.model.simt.maps import FloatMap, IntegerMap
from spqt_ti.model.simt.token_kernels import make_token_kernels
from spqt_ti.model.simt.weights import WeightMap

LLAMA_3_8B = ModelConfig(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    head_dim=128, vocab_size=128256, max_position_embeddings=8192, rope_theta=500000.0,
)  # fmt: skip
CONTEXT = 8192


# Norms of heads, windows, an input of down that is turned: what the one above has not.
QWEN_3_4B = ModelConfig(
    hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
    head_dim=128, vocab_size=151936, max_position_embeddings=40960, tie_word_embeddings=True, model_type="qwen3",
    sliding_window=4096, rotates_down=True,
)  # fmt: skip


@pytest.fixture(scope="module", params=[LLAMA_3_8B, QWEN_3_4B], ids=["Llama-3-8B", "Qwen3-4B"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return request.param


def constants_of(config: ModelConfig) -> Constants:
    """Where they would lie; their values do not matter here."""
    layer, stride = {}, 0
    for norm in config.norms():
        layer[norm.role] = stride
        stride += norm.size
    if config.sliding_window:
        layer["window"] = stride
        stride += 16
    if config.rotates_down:
        layer["rotation"] = stride
        stride += 16
    final_norm = stride * config.num_hidden_layers
    rope = final_norm + config.hidden_size
    return Constants(np.empty(rope + CONTEXT * config.head_dim, np.float32), layer, stride, final_norm, rope)


@pytest.fixture(scope="module")
def kernels(config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> list[Kernel]:
    folder, constants = tmp_path_factory.mktemp("kernels"), constants_of(config)
    weight_map = WeightMap.of(config)
    cache = CacheShape(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, CONTEXT)
    selectors = SelectorMap.of(config.num_hidden_layers, config.intermediate_size)
    maps = (
        weight_map,
        constants,
        cache,
        selectors,
        FloatMap.of(weight_map, constants, selectors),
        IntegerMap.of(weight_map),
    )
    translated = []
    begin, layer_launches, end = make_chunk_kernels(*maps)
    for kernel in (*make_token_kernels(*maps), begin, *(launch.kernel for launch in layer_launches), end):
        place = folder / kernel.__name__
        place.mkdir()
        translated.append(translate(kernel.__name__, checked(kernel), place))
    return translated


def test_what_the_runner_requires_is_what_the_kernels_need(kernels: list[Kernel], config: ModelConfig) -> None:
    """ModelArrays asks the device for these before anything is uploaded."""
    tasks = [task for kernel in kernels for task in kernel.tasks]
    assert len(tasks) >= 26
    assert max(task.threads for task in tasks) == arrays._MAX_GROUP
    assert max(map(limits.threadgroup_bytes, tasks)) == arrays.shared_memory(config)
    assert max(sum(argument.is_array for argument in kernel.arguments) for kernel in kernels) == arrays._ARRAYS
