"""The four points of a layer where inputs are collected, in the order in which a token meets them; and what is counted
by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from spqt_ti.kernels.shared.geometry import ZigzagShape
from spqt_ti.model.config import ModelConfig


class Site(IntEnum):
    """A point of a layer where inputs are collected, and the matrix that reads them: projections that share an input,
    stacked.
    """

    QKV = 0
    O = 1  # noqa: E741
    GATE_UP = 2
    DOWN = 3

    @property
    def label(self) -> str:
        """Its name in files and tables, "gate_up"."""
        return self.name.lower()

    @property
    def module(self) -> str:
        """Name of its matrix within a layer, "mlp.gate_up_proj"."""
        return _MODULES[self]

    @property
    def projections(self) -> tuple[str, ...]:
        """Hugging Face's names of the projections in its matrix, in their order: ("gate_proj", "up_proj")."""
        return _PROJECTIONS[self]


_MODULES = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
_PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))

SITES = tuple(site.label for site in Site)
SITE_COUNT = len(Site)


def matrix_shapes(config: ModelConfig, layer: int | None = None) -> dict[str, ZigzagShape]:
    """Site -> shape of the (stacked) matrix that reads it, in a layer or, by default, in the widest one."""
    width = config.intermediate_size if layer is None else config.widths()[layer]
    heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    attention = config.num_attention_heads * config.head_dim
    return {
        "qkv": ZigzagShape(heads, config.hidden_size),
        "o": ZigzagShape(config.hidden_size, attention),
        "gate_up": ZigzagShape(2 * width, config.hidden_size),
        "down": ZigzagShape(config.hidden_size, width),
    }


def inputs_per_site(config: ModelConfig) -> np.ndarray:
    """Inputs that a token has at each site of the widest layer, i32 [4]."""
    shapes = matrix_shapes(config)
    return np.array([shapes[site].cols for site in SITES], np.int32)


def inputs_per_layer(config: ModelConfig) -> np.ndarray:
    """Inputs that a token has at each site of each layer, i32 [layers, 4]."""
    inputs = np.tile(inputs_per_site(config), (config.num_hidden_layers, 1))
    inputs[:, Site.DOWN] = config.widths()
    return inputs


def realised_sparsity(config: ModelConfig, active: np.ndarray) -> float:
    """Share of the layers' weights that a token skips with these numbers of active inputs [layers, 4].

    An input counts as many weights as its column has. The same on every device: padding is no weight.
    """
    rows = np.tile([shape.rows for shape in matrix_shapes(config).values()], (config.num_hidden_layers, 1))
    rows[:, Site.GATE_UP] = 2 * np.array(config.widths())
    return float(1 - (active * rows).sum() / (inputs_per_layer(config) * rows).sum())


def inputs_skipped(config: ModelConfig, active: np.ndarray) -> np.ndarray:
    """Share of the inputs that a token skips at each site, f64 [4], of active inputs [layers, 4]."""
    return 1 - active.sum(axis=0) / inputs_per_layer(config).sum(axis=0)


@dataclass(frozen=True)
class Traffic:
    """Bytes of weights that a decoded token reads, padding included, as an engine keeps them.

    `columns`: i64 [layers, 4], of one column of each site's matrix, which is what an active input costs; `head`: of
    the vocabulary matrix, which is read whole.
    """

    columns: np.ndarray
    head: int

    def bytes_per_token(self, active: np.ndarray) -> float:
        """Bytes with these numbers of active inputs [layers, 4]."""
        return float((active * self.columns).sum()) + self.head
