"""What is said when logits are not finite numbers: in which layer it began, and what to do.

Whatever is not a number in a layer's output reaches the keys and values of the next layer, unless its inputs are
skipped. So the KV cache shows where it began, without running anything again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HALF_MOST = 65504  # the largest finite f16


@dataclass(frozen=True)
class CacheFault:
    """The first layer whose keys or values are not finite; `infinite`: they overflowed there, and are not NaN alone."""

    layer: int
    infinite: bool


def all_finite(values: np.ndarray) -> bool:
    """Whether f16 or f32 values, of any shape and strides, are all finite. Two reductions, without a copy.

    As signed integers, what is infinite or NaN and positive is above every other; as unsigned ones, what is negative.
    """
    bits = 8 * values.dtype.itemsize
    infinity = int(np.array(np.inf, values.dtype).view(f"u{bits // 8}"))
    highest = values.view(f"i{bits // 8}").max(initial=0)
    lowest = values.view(f"u{bits // 8}").max(initial=0)
    return bool(highest < infinity and lowest < infinity + (1 << (bits - 1)))


def first_fault(layers: np.ndarray) -> CacheFault | None:
    """The first fault of keys and values [layers, ...]."""
    if all_finite(layers):
        return None
    layer = next(i for i, values in enumerate(layers) if not all_finite(values))
    return CacheFault(layer, bool(np.isinf(layers[layer]).any()))


def explain(fault: CacheFault | None, half: bool, sparse: bool, layers: int) -> str:
    """The message about logits, or a cache, with this fault (None: the cache has none); `half`: the cache is f16;
    `sparse`: inputs are skipped, NaN among them.
    """
    if fault is None and sparse:
        where, cure = (
            "the output of a layer or the head overflows f32 (without sparsity it can be told which)",
            _WEIGHTS,
        )
    elif fault is None:
        where, cure = f"the output of layer {layers - 1} or the head overflows f32", _WEIGHTS
    elif fault.infinite and half:
        where = f"keys or values of layer {fault.layer} are above {HALF_MOST}, the largest number of the f16 KV cache"
        cure = "load the model with exact=True (--exact), which keeps them in f32"
    elif fault.infinite:
        where, cure = f"keys or values of layer {fault.layer} overflow f32", _WEIGHTS
    else:
        before = f"the output of layer {fault.layer - 1}" if fault.layer else "the input of layer 0"
        where, cure = f"{before} overflows f32", _WEIGHTS
    return f"the logits are not finite numbers, because {where}; {cure}"


_WEIGHTS = "the weights are damaged, or the model is none of its architecture: check it with its original software"
