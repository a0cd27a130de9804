"""An own calibration method in 20 lines: less sparsity in early layers, more in late ones.

    python examples/own_method.py [MODEL]

A method looks at the inputs of every site on a text and makes a threshold of them. No kernel knows of methods.
"""

import sys
from collections import defaultdict

import numpy as np

import spqt_ti
from spqt_ti.model.sites import SITES

TEXT = """A river rises in the hills, runs through three towns and a lake, and ends in the sea. Every spring it floods
the meadows. The miller says that the water is his clock: when it is loud, he sleeps badly, when it is quiet, he reads.
"""


def magnitudes(model: spqt_ti.Model, text: str) -> dict[tuple[int, str], np.ndarray]:
    """(layer, site) -> |x| f32 [tokens, cols] of everything that the site's matrix is multiplied with on the text."""
    seen = defaultdict(list)

    def observe(layer: int, site: str, x: np.ndarray) -> None:
        seen[layer, site].append(np.abs(x))  # a new array: x itself is overwritten by the next layer

    model.llama.reset()
    model.llama.prefill(model.tokenizer.encode(text), logits="none", observer=observe)
    return {place: np.concatenate(parts) for place, parts in seen.items()}


def ramp(model: spqt_ti.Model, text: str, level: float) -> spqt_ti.SparsityPolicy:
    """A policy of this mean sparsity that rises linearly from 0.5 `level` in the first layer to 1.5 in the last."""
    layers = model.llama.config.num_hidden_layers
    levels = level * np.linspace(0.5, 1.5, layers)
    thresholds = np.zeros((layers, 4), np.float32)
    for (layer, site), x in magnitudes(model, text).items():
        thresholds[layer, SITES.index(site)] = np.quantile(x, levels[layer])
    return spqt_ti.SparsityPolicy("ramp", level, thresholds, model.container.fingerprint)


def main(name: str = "smollm2-135m") -> None:
    model = spqt_ti.load(name)
    for policy in (model.calibrate().policy(0.4), ramp(model, TEXT, 0.4)):
        model.apply(policy)
        made = model.generate("The water is", max_new_tokens=24)
        print(f"{policy.method}: {made.text!r}, {made.stats.bytes_per_token / 1e6:.1f} MB per token")


if __name__ == "__main__":
    main(*sys.argv[1:])
