"""Magnitudes of the inputs at every site over a text: the raw material of every threshold.

Each site keeps one histogram of |x| over the whole range of f32 (histogram.py), so memory is bounded.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from spqt_ti.errors import PolicyError
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES
from spqt_ti.progress import progress
from spqt_ti.sparsity.checkpoint import Checkpoint
from spqt_ti.sparsity.kept_arrays import KeptArrays
from spqt_ti.sparsity.search.histogram import BINS, histogram, quantiles

SAVE_SECONDS = 10.0  # between checkpoints


class Magnitudes:
    """Histograms of |x|, or of |x| * weight where `weights` ((layer, site) -> f32 [cols]) has the site; i64 [layers, 4,
    bins].
    """

    def __init__(self, layers: int, weights: Mapping[tuple[int, str], np.ndarray] | None = None) -> None:
        self._weights = weights or {}
        self.counts = np.zeros((layers, len(SITES), BINS), np.int64)

    def observe(self, layer: int, site: str, inputs: np.ndarray) -> None:
        """Count the inputs f32 [tokens, cols] of a site; an Observer of `Llama.prefill`."""
        if (layer, site) in self._weights:
            inputs = inputs * self._weights[layer, site]
        self.counts[layer, SITES.index(site)] += histogram(inputs)

    def arrays(self, done: int) -> dict[str, np.ndarray]:
        """What `restore` takes: the bins that are not empty, and how many tokens were counted."""
        bins = np.flatnonzero(self.counts)
        return {"places": bins, "counts": self.counts.reshape(-1)[bins], "done": np.array(done)}

    def restore(self, arrays: KeptArrays | None) -> int:
        """Take the counts that `arrays` gave (None: nothing); returns how many tokens they are of.

        Raises PolicyError for counts that are of no such model.
        """
        if arrays is None:
            return 0
        bins = arrays.take("places", "iu", (None,))
        counts, done = arrays.take("counts", "iu", bins.shape), int(arrays.take("done", "iu", ()))
        if bins.size and not 0 <= bins.min() <= bins.max() < self.counts.size:
            raise arrays.damaged("bins outside the histograms")
        if done < 0 or (counts.size and counts.min() < 0):
            raise arrays.damaged("negative counts")
        self.counts.reshape(-1)[bins] = counts
        return done

    def quantiles(self, levels: Sequence[float]) -> np.ndarray:
        """f32 [layers, 4, len(levels)]: the magnitude below which a share `level` of the inputs lies, linear inside a
        bin.
        """
        result = np.zeros((*self.counts.shape[:2], len(levels)), np.float32)
        for layer, site in np.ndindex(self.counts.shape[:2]):
            result[layer, site] = quantiles(self.counts[layer, site], levels)
        return result


def capture(
    llama: Llama,
    tokens: Sequence[int],
    window: int,
    weights: Mapping[tuple[int, str], np.ndarray] | None = None,
    checkpoint: Checkpoint | None = None,
    name: str = "capture",
) -> Magnitudes:
    """Run `tokens` densely, in windows of `window` tokens (of the context, if that is shorter), and count every input,
    times its weight if it has one. With a `checkpoint` the counts are kept there under `name`, now and then.

    Raises PolicyError without tokens, and for a checkpoint of something else.
    """
    if not len(tokens):
        raise PolicyError("the calibration text has no tokens")
    checkpoint = checkpoint or Checkpoint()
    window = min(window, llama.context)
    magnitudes = Magnitudes(llama.config.num_hidden_layers, weights)
    kept = checkpoint.load(name, window=window)
    done = magnitudes.restore(kept)
    if kept is not None and done > len(tokens):
        raise kept.damaged(f"{done} tokens are done of {len(tokens)}")
    llama.reset()
    llama.warm_up_prefill()
    bar = progress(total=len(tokens), initial=done, desc="calibrate", unit="tokens")
    saved = time.monotonic()
    with bar:
        while done < len(tokens):
            part = tokens[done : done + window]
            llama.reset()
            llama.prefill(part, logits="none", observer=magnitudes.observe)
            done += len(part)
            bar.update(len(part))
            if done == len(tokens) or time.monotonic() - saved >= SAVE_SECONDS:
                checkpoint.save(name, magnitudes.arrays(done), window=window)
                saved = time.monotonic()
    llama.reset()
    return magnitudes
