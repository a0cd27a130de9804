"""Perplexity and KL of one container at many policies, as a study that any executor runs (`spqt_ti/parallel`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spqt_ti.container import Container
from spqt_ti.errors import ExecutionError
from spqt_ti.evaluation.perplexity import Scorer, Scores, score_window, second_half
from spqt_ti.model.runner import Llama
from spqt_ti.sparsity.active_inputs import ActiveInputs
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.sparsity.search.divergence import log_softmax
from spqt_ti.sparsity.shared_policies import find_policy, policy_path
from spqt_ti.texts import sha256

TEXT_SCORES = "spqt_ti.evaluation.studies:TextScores"

_SUMS = 2  # values before those of windows


class TextScores:
    """A container's scores on the second halves of "windows", as `perplexity.evaluate` has them.

    Settings: "windows"; "threads"; "reference", a folder that `write_reference` has filled with what KL is from, or
    None for the container's own dense run. An item is `policy_item` of a policy file, or None for a dense run.
    `WindowScores.of` reads the result.
    """

    def __init__(self, container: Container, settings: Mapping[str, Any]) -> None:
        self._windows = settings["windows"]
        self._fingerprint, self._reference = container.fingerprint, settings["reference"]
        longest = max(len(window) for window in self._windows)
        self._llama = Llama(container, backend_name="cpu", threads=settings["threads"], context=longest)

    def __call__(self, item: Sequence[str] | None) -> np.ndarray:
        """See Study."""
        llama, policy = self._llama, None if item is None else self._policy(*item)
        active, scores = ActiveInputs(llama), Scores()
        for number, window in enumerate(self._windows):
            llama.selectors.clear()
            dense = self._dense(number, window)
            if policy is not None:
                policy.apply(llama)
            score_window(scores, window, dense, log_softmax(second_half(llama, window, active)))
        llama.selectors.clear()
        means = [[float(np.mean(values)) for values in part] for part in (scores.nll, scores.kl, scores.same)]
        bytes_read = llama.traffic.bytes_per_token(active.mean)
        return np.array([active.realised_sparsity, bytes_read, *means[0], *means[1], *means[2]])

    def _dense(self, number: int, window: Sequence[int]) -> np.ndarray:
        if self._reference is None:
            return log_softmax(second_half(self._llama, window, None))
        return np.load(Path(self._reference) / f"{number}.npy", mmap_mode="r", allow_pickle=False)

    def _policy(self, path: str, digest: str) -> SparsityPolicy:
        policy = find_policy(path)
        if sha256(policy.to_json()) != digest:
            raise ExecutionError(f"{path}: the policy has changed since the sweep began")
        policy.check(self._fingerprint, self._llama.config.num_hidden_layers)
        return policy


def policy_item(path: str | Path) -> list[str]:
    """The item of a policy file: where it is, and which content it is to have."""
    path = policy_path(path)
    return [str(path.absolute()), sha256(find_policy(path).to_json())]


def write_reference(folder: Path, windows: Sequence[Sequence[int]], scorer: Callable[[], Scorer]) -> None:
    """Log-probabilities f32 of what KL is measured from, a file per window; those that are there are kept, and `scorer`
    is not asked for where all are.
    """
    missing = [number for number in range(len(windows)) if not (folder / f"{number}.npy").exists()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    score = scorer()
    for number in missing:
        temporary = folder / f"{number}.part.npy"
        np.save(temporary, log_softmax(np.array(score(windows[number]), np.float32)))
        temporary.replace(folder / f"{number}.npy")


@dataclass(frozen=True)
class WindowScores:
    """A result of TextScores. `nll`, `kl`, `same`: f64 [windows], means over a window's scored tokens."""

    realised_sparsity: float
    bytes_per_token: float
    nll: np.ndarray
    kl: np.ndarray
    same: np.ndarray

    @classmethod
    def of(cls, result: np.ndarray) -> WindowScores:
        """From what the study returned."""
        return cls(float(result[0]), float(result[1]), *np.split(result[_SUMS:], 3))

    @property
    def perplexity(self) -> float:
        """Over all scored tokens: windows have equally many."""
        return float(np.exp(self.nll.mean()))
