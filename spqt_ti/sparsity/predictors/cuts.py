"""Biases of a predictor: how many of the text's tokens each neuron is off for (section 3 of arXiv 2603.14110).

A neuron's tokens are sorted by its prediction. Off are those below its cut, which rises where that loses least: the
penalty of a cut is the squared importance below it. Cuts are on a grid, which bounds memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

POINTS = 256  # steps of a cut from no token to all
SILENCED = 0.01  # of the neurons, at most: those whose cut rises over all tokens though they matter


@dataclass(frozen=True)
class Cuts:
    """What is known of each neuron at each cut: a layer's neurons on `tokens` tokens.

    `counts`: tokens below each cut, i64 [cuts], from 0 to all; `highest`: prediction of the last token below it, f32
    [neurons, cuts], at the first cut just under the lowest; `penalties`: squared importance below it, f64 likewise;
    `lost`: tokens below it for which the neuron was on, i32 likewise.
    """

    counts: np.ndarray
    highest: np.ndarray
    penalties: np.ndarray
    lost: np.ndarray

    @classmethod
    def measure(cls, predictions: np.ndarray, importance: np.ndarray, on: np.ndarray) -> Cuts:
        """Of predictions f32, importance f32 or f64 and whether it was on, each [tokens, neurons]."""
        tokens = len(predictions)
        counts = np.unique(np.round(np.linspace(0, tokens, POINTS + 1)).astype(np.int64))
        order = np.argsort(predictions, axis=0, kind="stable")
        ordered = np.take_along_axis(predictions, order, axis=0).astype(np.float32)
        highest = ordered[np.maximum(counts - 1, 0)].T
        highest[:, 0] = np.nextafter(highest[:, 0], np.float32(-np.inf))
        penalties = _below(np.take_along_axis(np.square(importance, dtype=np.float64), order, axis=0), counts)
        lost = _below(np.take_along_axis(on, order, axis=0).astype(np.int32), counts)
        return cls(counts, np.ascontiguousarray(highest), penalties, lost)

    @classmethod
    def joined(cls, parts: list[Cuts]) -> Cuts:
        """Of neurons that were measured in parts."""
        arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in ("highest", "penalties", "lost"))
        return cls(parts[0].counts, *arrays)

    @property
    def tokens(self) -> int:
        """Tokens that were measured."""
        return int(self.counts[-1])

    @property
    def true_density(self) -> float:
        """Share of neurons and tokens that were on."""
        return float(self.lost[:, -1].sum() / self._all)

    def free(self) -> np.ndarray:
        """The highest cut of each neuron without a penalty, i64 [neurons]."""
        found: np.ndarray = (self.penalties <= 0).sum(axis=1) - 1
        return found

    def choose(self, target: float) -> np.ndarray:
        """Raise cuts from the free ones until a share `target` of neurons and tokens is below them: always the cut
        whose next step has the least penalty. i64 [neurons].

        Stops before more than SILENCED of the neurons are off for all tokens by this. Where free cuts are above the
        target, they stay.
        """
        cuts = self.free()
        first = int(self.counts[cuts].sum())
        wanted = target * self._all - first
        if wanted <= 0:
            return cuts
        steps = np.diff(self.penalties, axis=1)
        steps[np.arange(steps.shape[1]) < cuts[:, None]] = -1.0
        # A dear step holds up the cheaper ones behind it: they all follow at once, at its price.
        price = np.maximum.accumulate(steps, axis=1)
        order = np.argsort(price, axis=None, kind="stable")[int((steps < 0).sum()) :]
        neuron, step = np.divmod(order, steps.shape[1])
        gained = np.cumsum(np.diff(self.counts)[step])
        silenced = np.cumsum(step == steps.shape[1] - 1)
        taken = min(int(np.searchsorted(gained, wanted)) + 1, len(order))
        most = int(np.searchsorted(silenced, int(SILENCED * len(cuts)), side="right"))
        taken = min(taken, most)
        np.maximum.at(cuts, neuron[:taken], step[:taken] + 1)
        return cuts

    def choose_one(self, target: float) -> tuple[np.ndarray, np.float32]:
        """One bias for all neurons with a share `target` below it: the cuts that it comes to, and the bias."""
        weights = np.broadcast_to(np.diff(self.counts), (len(self.highest), len(self.counts) - 1))
        order = np.argsort(self.highest[:, 1:], axis=None, kind="stable")
        below = np.cumsum(weights.reshape(-1)[order])
        at = min(int(np.searchsorted(below, target * self._all)), len(order) - 1)
        level = self.highest[:, 1:].reshape(-1)[order[at]]
        return (self.highest[:, 1:] <= level).sum(axis=1), np.float32(-level)

    def choose_at(self, level: float) -> np.ndarray:
        """The cuts that a bias of -level for every neuron comes to."""
        found: np.ndarray = (self.highest[:, 1:] <= level).sum(axis=1)
        return found

    def bias(self, cuts: np.ndarray) -> np.ndarray:
        """f32 [neurons]: with it the prediction is above zero for the tokens above the cut."""
        return -np.take_along_axis(self.highest, cuts[:, None], axis=1)[:, 0]

    def figures(self, cuts: np.ndarray) -> dict[str, float]:
        """Recall and precision of the neurons that were on, and predicted and true density, on the measured tokens."""
        lost = int(np.take_along_axis(self.lost, cuts[:, None], axis=1).sum())
        positive = int(self.lost[:, -1].sum())
        predicted = self._all - int(self.counts[cuts].sum())
        return {
            "recall": 1 - lost / positive if positive else 1.0,
            "precision": (positive - lost) / predicted if predicted else 1.0,
            "predicted_density": predicted / self._all,
            "true_density": positive / self._all,
        }

    @property
    def _all(self) -> int:
        return len(self.highest) * self.tokens


def _below(ordered: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums of the first `count` of [tokens, neurons], [neurons, counts]."""
    sums = np.cumsum(ordered, axis=0)
    zero = np.zeros((1, ordered.shape[1]), sums.dtype)
    return np.ascontiguousarray(np.concatenate([zero, sums])[counts].T)
