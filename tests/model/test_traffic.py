"""What a token reads: bytes as engines keep them, and shares of weights, which are the same everywhere."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny_containers
from tiny_models import tiny_config

from spqt_ti.kernels.shared.geometry import tiles_for
from spqt_ti.model.cpu import weights as cpu
from spqt_ti.model.cpu.matrix_maps import traffic as cpu_traffic
from spqt_ti.model.simt import weights as simt
from spqt_ti.model.sites import inputs_per_site, inputs_skipped, matrix_shapes, realised_sparsity

# Rows of gate and up in the last band: 0, 64 (a tail band), 128 and 192 (padded to a full band on the CPU).
INTERMEDIATE = (256, 288, 320, 352)


def config_of(intermediate: int):
    return dataclasses.replace(tiny_config(), intermediate_size=intermediate)


def everything(config) -> np.ndarray:
    return np.tile(inputs_per_site(config), (config.num_hidden_layers, 1))


def test_cpu_reads_the_arrays_it_has() -> None:
    """Bytes of a dense token are those of the weights' arrays, without what is spare at their end."""
    container = tiny_containers.container("gqa")
    tiny_containers.llama("gqa")  # starts the backend
    config, (quants, tail, headers) = container.config, cpu.Weights(container, 64, {}).map.matrices.sizes
    head = tiles_for(config.vocab_size) * config.hidden_size * (64 + 4)
    layers = 64 * quants + 32 * tail + 16 * headers
    assert cpu_traffic(config).bytes_per_token(everything(config)) == layers + head


@pytest.mark.parametrize("intermediate", INTERMEDIATE)
def test_gpu_reads_the_arrays_it_has(intermediate: int) -> None:
    config = config_of(intermediate)
    sizes = simt.WeightMap.of(config).sizes()
    head = tiles_for(config.vocab_size) * config.hidden_size * (64 + 4)
    expected = 4 * (sizes["quants"] + sizes["headers"]) + head
    assert simt.traffic(config).bytes_per_token(everything(config)) == expected


@pytest.mark.parametrize("intermediate", INTERMEDIATE)
def test_only_the_cpu_pads_a_last_band(intermediate: int) -> None:
    config = config_of(intermediate)
    gate_up = 2
    on_cpu, on_gpu = (traffic(config).columns[0, gate_up] for traffic in (cpu_traffic, simt.traffic))
    rows = 2 * intermediate % 256
    assert (on_cpu > on_gpu) == (rows > 64 and rows <= 192)


def test_shares_count_weights_or_inputs() -> None:
    """`down` alone skipped: its share of the weights, and all of its inputs."""
    config = tiny_config()
    active = everything(config).astype(float)
    active[:, 3] = 0
    sizes = [shape.rows * shape.cols for shape in matrix_shapes(config).values()]
    assert realised_sparsity(config, active) == pytest.approx(sizes[3] / sum(sizes))
    assert inputs_skipped(config, active).tolist() == [0, 0, 0, 1]
    assert realised_sparsity(config, everything(config)) == 0
