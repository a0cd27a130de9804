"""WiSparse (arXiv 2602.14452): weighted scores, budgets per layer by evolution, greedy sparsity inside a layer.

Once for all levels: (1) per site the alpha of its score (alpha.py); (2) per layer the greedy picks with these scores
(greedy.py), which say how a layer spends any budget; (3) quantiles of the scores of the whole text; (4) what each
layer costs alone (sensitivity.py). For a level: (5) which layer gets which budget, the mean being the level, searched
by the divergence from the dense model (evolution.py, divergence.py), and kept unless they are worse than equal budgets
on windows that nothing was chosen on; (6) the level that skips as much as was asked for (realise.py). Grids, fitness
and population are ours, as the paper's are not public.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from spqt_ti.allocation import allocators
from spqt_ti.allocation.problem import BudgetProblem
from spqt_ti.container import Container
from spqt_ti.errors import PolicyError
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES
from spqt_ti.progress import progress
from spqt_ti.sparsity.capture import capture
from spqt_ti.sparsity.checkpoint import Checkpoint, Value
from spqt_ti.sparsity.kept_arrays import KeptArrays
from spqt_ti.sparsity.methods import uniform
from spqt_ti.sparsity.methods.teal import check_level
from spqt_ti.sparsity.policy import SparsityPolicy, be_dense
from spqt_ti.sparsity.search import alpha, greedy, sensitivity
from spqt_ti.sparsity.search.divergence import BudgetFitness
from spqt_ti.sparsity.search.evolution import Fitness, Levels, Search, State, costs_of, evolve, is_better
from spqt_ti.sparsity.search.histogram import LEVELS
from spqt_ti.sparsity.search.realise import realise
from spqt_ti.sparsity.search.sample import embeddings, spread
from spqt_ti.sparsity.search.scores import thresholds_at
from spqt_ti.sparsity.search.stored_layer import StoredLayer, calibration_threads, unmasked
from spqt_ti.sparsity.search.swept import Elsewhere
from spqt_ti.threads import blas_threads

STEP = 0.025  # of a layer's weights: one level of a budget
FARTHEST = 0.2  # that a layer's budget may be from the mean
MEASURED = (0.3, 0.5, 0.7)  # budgets that each layer is measured at alone
WINDOW = 128  # tokens of a window that budgets are compared on
UNSEEN_WINDOW = 256  # longer: one comparison that has the last word
SEARCHED, UNSEEN = 0.5, 0.25  # where windows of the search and unseen ones lie, as for `spread`

Weights = dict[tuple[int, str], np.ndarray]


@dataclass(frozen=True)
class LayerFindings:
    """What was found inside the layers: alphas f64 [layers, 4], the weights that they make, the picks; and the
    quantiles of the scores f32 [layers, 4, 100].
    """

    alphas: np.ndarray
    weights: Weights
    paths: list[greedy.Path]
    tables: np.ndarray

    def thresholds(self, budgets: np.ndarray) -> np.ndarray:
        """f32 [layers, 4] where the layers have `budgets` f64 [layers]."""
        sparsities = [path.at(budget) for path, budget in zip(self.paths, budgets, strict=True)]
        return thresholds_at(self.tables, np.array(sparsities))

    def threshold_levels(self, budgets: Sequence[float] | np.ndarray) -> np.ndarray:
        """f32 [layers, len(budgets), 4]: the thresholds of every layer at every budget."""
        return np.stack([self.thresholds(np.full(len(self.paths), budget)) for budget in budgets], axis=1)


@dataclass(frozen=True)
class Budgets:
    """Levels of the layers' budgets, and costs: of equal budgets and those found, on the windows of the search and on
    unseen ones. `levels` are equal where those found are worse on the unseen, by more than a standard error.
    """

    levels: Levels
    even: float
    found: float
    even_unseen: float
    found_unseen: float


@dataclass(frozen=True)
class WisparseCalibration:
    """What serves every level: layers, and costs f64 [layers, len(MEASURED)] of each alone; `policy` searches.

    `elsewhere`: what evaluates individuals (None: `llama`). It changes no bit of a policy.
    """

    llama: Llama
    model: str
    text_sha256: str
    tokens: Sequence[int]
    findings: LayerFindings
    alone: np.ndarray
    search: Search = field(default_factory=Search)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    elsewhere: Elsewhere | None = None

    def policy(self, sparsity: float) -> SparsityPolicy:
        """Search for one level. Raises PolicyError outside 0 .. 0.9."""
        check_level(sparsity, "WiSparse")
        found = self._budgets(sparsity)

        def thresholds(level: float) -> np.ndarray:
            return self.findings.thresholds(np.clip(level + STEP * np.array(found.levels), 0, greedy.MOST))

        level = realise(self.llama, self.tokens, sparsity, greedy.MOST, thresholds, self.findings.weights)
        source = {
            "text_sha256": self.text_sha256, "tokens": len(self.tokens), "seed": self.search.seed,
            "generations": self.search.generations, "offspring": self.search.offspring,
            "kl_even": found.even, "kl_found": found.found, "kl_even_unseen": found.even_unseen,
            "kl_found_unseen": found.found_unseen, "level": round(level, 6), "steps": list(found.levels),
            "alphas": self.findings.alphas.tolist(),
        }  # fmt: skip
        return SparsityPolicy("wisparse", sparsity, thresholds(level), self.model, source, self.findings.weights)

    def _budgets(self, sparsity: float) -> Budgets:
        """Search levels of the layers' budgets, in steps of STEP from `sparsity`."""
        lowest, highest = level_range(sparsity)
        budgets = sparsity + STEP * np.arange(lowest, highest + 1)
        guess = _of_least_sum(sensitivity.at_budgets(self.alone, MEASURED, budgets), budgets, lowest)
        even = (0,) * len(self.findings.paths)
        thresholds = self.findings.threshold_levels(budgets)
        windows = _windows(self.llama, self.tokens, self.search.windows, WINDOW, SEARCHED)
        fitness = _fitness(self.llama, windows, thresholds, -lowest, self.findings, self.elsewhere)
        fitness.settle(even)
        at_even = float(fitness.costs(even, range(fitness.parts)).mean())
        state = self._evolve(sparsity, fitness, [even, guess])
        # Two fitnesses at a time would hold their logits twice.
        del fitness
        windows = _windows(self.llama, self.tokens, self.search.windows, UNSEEN_WINDOW, UNSEEN)
        unseen = _fitness(self.llama, windows, thresholds, -lowest, self.findings, self.elsewhere)
        unseen.settle(even)
        costs = list(costs_of(unseen, [(levels, range(unseen.parts)) for levels in (even, state.levels)]))
        _be_dense(self.llama)
        levels = even if is_better(costs[0], costs[1], errors=1) else state.levels
        return Budgets(levels, at_even, state.history[-1], *(float(c.mean()) for c in costs))

    def _evolve(self, sparsity: float, fitness: Fitness, starts: Sequence[Levels]) -> State:
        s = self.search
        name = f"wisparse-{sparsity:g}-budgets-{s.offspring}x{s.generations}-seed{s.seed}"
        settings: dict[str, Value] = {"sparsity": sparsity, "search": repr(s)}
        lowest, highest = level_range(sparsity)
        found = _to_state(self.checkpoint.load(name, **settings), len(self.findings.paths), fitness.parts)
        if found and not all(lowest <= level <= highest for level in found.levels):
            raise PolicyError(
                f"{name}: a kept search has levels outside {lowest} .. {highest}; delete it to start again"
            )

        def save(state: State) -> None:
            self.checkpoint.save(name, _of_state(state), **settings)

        return evolve(fitness, starts, lowest, highest, s, found, save)


def calibrate(
    llama: Llama,
    container: Container,
    text: str,
    tokens: Sequence[int],
    search: Search,
    checkpoint: Checkpoint,
    elsewhere: Elsewhere | None = None,
) -> WisparseCalibration:
    """Do what serves every level, on `tokens` (of `text`, whose hash is kept). `elsewhere`: see WisparseCalibration."""
    findings = _inside_layers(llama, container, tokens, search, checkpoint, elsewhere)
    alone = _alone(llama, tokens, findings, search, checkpoint, elsewhere)
    return WisparseCalibration(
        llama, container.fingerprint, uniform.sha256(text), tokens, findings, alone, search, checkpoint, elsewhere
    )


def _fitness(
    llama: Llama,
    windows: Sequence[Sequence[int]],
    thresholds: np.ndarray,
    zero: int,
    findings: LayerFindings,
    elsewhere: Elsewhere | None,
) -> Fitness:
    if elsewhere is not None:
        return elsewhere.fitness(windows, thresholds, zero, findings.alphas)
    return BudgetFitness(llama, windows, thresholds, zero, findings.weights)


def _of_least_sum(costs: np.ndarray, budgets: np.ndarray, lowest: int) -> Levels:
    """Levels from `lowest` on, whose sum is 0, of the least sum of costs f64 [layers, len(budgets)]."""
    problem = BudgetProblem(budgets, np.ones(len(costs)), costs)
    found = allocators.allocate("least-sum", problem, allocators.ReachRate(-lowest))
    return tuple(level + lowest for level in found.levels)


def _inside_layers(
    llama: Llama, container: Container, tokens: Sequence[int], search: Search, checkpoint: Checkpoint,
    elsewhere: Elsewhere | None,
) -> LayerFindings:  # fmt: skip
    """Alphas and picks of every layer on a sample that runs densely, quantiles of the scores of all tokens."""
    arrays = checkpoint.load("wisparse-blocks")
    paths, weights = greedy.from_arrays(arrays), Weights()
    alphas = [] if arrays is None else list(arrays.take("alphas", "f", (len(paths), len(SITES))))
    x = embeddings(container, spread(tokens, search.windows // 2, greedy.WINDOW))
    layers = container.config.num_hidden_layers
    with blas_threads(calibration_threads(container.config, llama.threads)):
        for layer in progress(range(layers), desc="WiSparse", unit="layers"):
            stored = StoredLayer.load(container, layer)
            if layer >= len(paths):
                alphas.append(alpha.search(stored, x).best)
                picked = x[
                    :: max(1, len(x) // (search.windows // 4))
                ]  # TEAL's windows, where the text has room for all
                paths.append(greedy.allocate(stored, picked, alpha.site_weights(stored, alphas[layer]), search.pick))
                checkpoint.save("wisparse-blocks", {"alphas": np.array(alphas), **greedy.to_arrays(paths)})
            weights |= {(layer, site): c for site, c in alpha.site_weights(stored, alphas[layer]).items()}
            x = stored.run(x, unmasked).output
    chosen = [of_sites.tolist() for of_sites in alphas]
    counted = capture(llama, tokens, uniform.WINDOW, weights, checkpoint, "wisparse-scores", elsewhere, chosen)
    return LayerFindings(np.array(alphas), weights, paths, counted.quantiles(LEVELS))


def _alone(
    llama: Llama,
    tokens: Sequence[int],
    findings: LayerFindings,
    search: Search,
    checkpoint: Checkpoint,
    elsewhere: Elsewhere | None,
) -> np.ndarray:
    """Costs of every layer alone at MEASURED budgets."""
    kept = checkpoint.load("wisparse-alone")
    shape = (len(findings.paths), len(MEASURED))
    known = None if kept is None else kept.take("costs", "f", shape, finite=False)  # NaN: not measured yet
    thresholds = findings.threshold_levels((0.0, *MEASURED))
    windows = _windows(llama, tokens, search.alone_windows, WINDOW, SEARCHED)
    fitness = _fitness(llama, windows, thresholds, 0, findings, elsewhere)

    def save(costs: np.ndarray) -> None:
        checkpoint.save("wisparse-alone", {"costs": costs})

    costs = sensitivity.measure(fitness, len(findings.paths), len(MEASURED), known, save)
    _be_dense(llama)
    return costs


def _windows(llama: Llama, tokens: Sequence[int], count: int, length: int, offset: float) -> list[Sequence[int]]:
    return spread(tokens, count, min(length, llama.context), offset)


def _be_dense(llama: Llama) -> None:
    be_dense(llama)
    llama.reset()


def level_range(sparsity: float) -> tuple[int, int]:
    """Lowest and highest level of a budget, in steps from `sparsity`: within FARTHEST of it, and 0 to greedy.MOST."""
    lowest = math.ceil((max(0.0, sparsity - FARTHEST) - sparsity) / STEP - 1e-9)
    highest = math.floor((min(greedy.MOST, sparsity + FARTHEST) - sparsity) / STEP + 1e-9)
    return lowest, highest


def _of_state(state: State) -> dict[str, np.ndarray]:
    return {
        "generation": np.array(state.generation), "levels": np.array(state.levels), "costs": state.costs,
        "history": np.array(state.history),
    }  # fmt: skip


def _to_state(arrays: KeptArrays | None, layers: int, parts: int) -> State | None:
    if arrays is None:
        return None
    generation = int(arrays.take("generation", "iu", ()))
    levels: Levels = tuple(arrays.take("levels", "iu", (layers,)).tolist())
    history = arrays.take("history", "f", (None,))
    if generation < 0:
        raise arrays.damaged(f"generation {generation}")
    return State(generation, levels, arrays.take("costs", "f", (parts,)), tuple(history.tolist()))
