"""The forward pass in float64 that logits are compared with: `model/reference.py`, whose own oracle is transformers."""

from collections.abc import Mapping

import numpy as np

from spqt_ti.model.config import ModelConfig
from spqt_ti.model.reference import LayerMask as Mask
from spqt_ti.model.reference import Reference

__all__ = ["Mask", "forward"]


def forward(
    config: ModelConfig, weights: Mapping[str, np.ndarray], tokens: list[int], mask: Mask | None = None
) -> np.ndarray:
    """Logits f64 [T, vocab]; `mask(layer, site, x [T, K])` returns the inputs that a site's matrices see."""
    wide = {name: values.astype(np.float64) for name, values in weights.items()}
    one = mask and (lambda layer, site, x: mask(layer, site, x[0])[None])
    return Reference(config, wide).logits(tokens, 0, one)
