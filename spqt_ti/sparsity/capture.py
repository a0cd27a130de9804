"""Magnitudes of the inputs at every site over a text: the raw material of every threshold.

Each site keeps one histogram of |x| over the whole range of f32 (histogram.py), so memory is bounded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from spqt_ti.container import Container
from spqt_ti.errors import PolicyError
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES
from spqt_ti.progress import progress
from spqt_ti.sparsity.checkpoint import Checkpoint
from spqt_ti.sparsity.kept_arrays import KeptArrays
from spqt_ti.sparsity.search.alpha import weights_of
from spqt_ti.sparsity.search.histogram import BINS, histogram, quantiles
from spqt_ti.sparsity.search.swept import Elsewhere

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

    def sparse(self) -> np.ndarray:
        """f64 [2n] that `add` takes: the bins that are not empty, then their counts."""
        bins = np.flatnonzero(self.counts)
        return np.concatenate([bins, self.counts.reshape(-1)[bins]]).astype(np.float64)

    def add(self, found: np.ndarray) -> None:
        """Add what another's `sparse` gave."""
        bins, counts = found.astype(np.int64).reshape(2, -1)
        self.counts.reshape(-1)[bins] += counts

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


class WindowMagnitudes:
    """Magnitudes of one window as a study. An item is the window's tokens, the result is `Magnitudes.sparse`.

    Settings: "longest", tokens of a window at most; "alphas" of the weights, lists [layers][4] (0: no weight), none of
    no layer; "threads".
    """

    def __init__(self, container: Container, settings: Mapping[str, Any]) -> None:
        self._llama = Llama(container, backend_name="cpu", threads=settings["threads"], context=settings["longest"])
        self._weights = weights_of(container, settings["alphas"])

    def __call__(self, item: Sequence[int]) -> np.ndarray:
        """See Study."""
        magnitudes = Magnitudes(self._llama.config.num_hidden_layers, self._weights)
        for _ in _counted(self._llama, magnitudes, [item]):
            pass
        return magnitudes.sparse()


def capture(
    llama: Llama,
    tokens: Sequence[int],
    window: int,
    weights: Mapping[tuple[int, str], np.ndarray] | None = None,
    checkpoint: Checkpoint | None = None,
    name: str = "capture",
    elsewhere: Elsewhere | None = None,
    alphas: Sequence[Sequence[float]] = (),
) -> Magnitudes:
    """Run `tokens` densely, in windows of `window` tokens (of the context, if that is shorter), and count every input,
    times its weight if it has one. With a `checkpoint` the counts are kept there under `name`, now and then.

    `elsewhere`: what runs the windows (None: `llama`), to the same counts. It makes the weights from `alphas`
    [layers][4], which have to be those of `weights`.

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
    parts = [tokens[start : start + window] for start in range(done, len(tokens), window)]
    if elsewhere is None:
        llama.reset()
        llama.warm_up_prefill()
        counted = _counted(llama, magnitudes, parts)
    else:
        counted = _counted_elsewhere(elsewhere, magnitudes, parts, window, alphas)
    bar = progress(total=len(tokens), initial=done, desc="calibrate", unit="tokens")
    saved = time.monotonic()
    with bar:
        for count in counted:
            done += count
            bar.update(count)
            if done == len(tokens) or time.monotonic() - saved >= SAVE_SECONDS:
                checkpoint.save(name, magnitudes.arrays(done), window=window)
                saved = time.monotonic()
    llama.reset()
    return magnitudes


def _counted(llama: Llama, magnitudes: Magnitudes, parts: Sequence[Sequence[int]]) -> Iterator[int]:
    """Run the parts and count their inputs; tokens of each."""
    for part in parts:
        llama.reset()
        llama.prefill(part, logits="none", observer=magnitudes.observe)
        yield len(part)


def _counted_elsewhere(
    elsewhere: Elsewhere, magnitudes: Magnitudes, parts: Sequence[Sequence[int]], window: int,
    alphas: Sequence[Sequence[float]],
) -> Iterator[int]:  # fmt: skip
    for part, found in zip(parts, elsewhere.magnitudes(parts, window, alphas), strict=True):
        magnitudes.add(found)
        yield len(part)
