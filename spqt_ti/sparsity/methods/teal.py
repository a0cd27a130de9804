"""TEAL (arXiv 2408.14690): inside every layer the sparsity goes where it costs the layer's output least (greedy.py).

Every layer has the same budget. Thresholds are quantiles of |x| over its full range, at the level that skips as much as
was asked for (realise.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spqt_ti.container import Container
from spqt_ti.errors import PolicyError
from spqt_ti.model.runner import Llama
from spqt_ti.progress import progress
from spqt_ti.sparsity.checkpoint import Checkpoint
from spqt_ti.sparsity.methods import uniform
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.sparsity.search.evolution import Search
from spqt_ti.sparsity.search.greedy import MOST, WINDOW, Path, allocate, from_arrays, to_arrays
from spqt_ti.sparsity.search.realise import realise
from spqt_ti.sparsity.search.sample import embeddings, spread
from spqt_ti.sparsity.search.scores import thresholds_at
from spqt_ti.sparsity.search.stored_layer import StoredLayer, calibration_threads, unmasked
from spqt_ti.sparsity.search.swept import Elsewhere
from spqt_ti.threads import blas_threads


@dataclass(frozen=True)
class TealCalibration:
    """The picks of every layer, and what thresholds are taken from."""

    llama: Llama
    tokens: Sequence[int]
    quantiles: uniform.Calibration
    paths: list[Path]

    def policy(self, sparsity: float) -> SparsityPolicy:
        """Every layer at the level that skips `sparsity`. Raises PolicyError outside 0 .. 0.9."""
        check_level(sparsity, "TEAL")
        level = realise(self.llama, self.tokens, sparsity, MOST, self._thresholds, {})
        source = {
            "text_sha256": self.quantiles.text_sha256, "tokens": self.quantiles.tokens, "level": round(level, 6),
        }  # fmt: skip
        return SparsityPolicy("teal", sparsity, self._thresholds(level), self.quantiles.model, source)

    def _thresholds(self, level: float) -> np.ndarray:
        return thresholds_at(self.quantiles.quantiles, np.array([path.at(level) for path in self.paths]))


def check_level(sparsity: float, method: str) -> None:
    """Raise PolicyError for a level that the greedy search does not reach."""
    if not 0 <= sparsity <= MOST:
        raise PolicyError(f"sparsity must be between 0 and {MOST} for {method}, not {sparsity}")


def calibrate(
    llama: Llama,
    container: Container,
    text: str,
    tokens: Sequence[int],
    checkpoint: Checkpoint,
    search: Search | None = None,
    elsewhere: Elsewhere | None = None,
) -> TealCalibration:
    """Quantiles on all of `tokens` (of `text`, whose hash is kept), picks on a sample of them. `elsewhere`: see
    `capture`.
    """
    search = search or Search()
    quantiles = uniform.calibrate(llama, container.fingerprint, text, tokens, checkpoint, elsewhere)
    paths = from_arrays(checkpoint.load("teal"))
    x = embeddings(container, spread(tokens, search.windows // 4, WINDOW))
    layers = container.config.num_hidden_layers
    with blas_threads(calibration_threads(container.config, llama.threads)):
        for layer in progress(range(layers), desc="TEAL", unit="layers"):
            stored = StoredLayer.load(container, layer)
            if layer >= len(paths):
                paths.append(allocate(stored, x, step=search.pick))
                checkpoint.save("teal", to_arrays(paths))
            if layer + 1 < layers:
                x = stored.run(x, unmasked).output
    return TealCalibration(llama, tokens, quantiles, paths)
