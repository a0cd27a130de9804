"""WiSparse (arXiv 2602.14452): weighted scores, budgets per block by evolution, greedy sparsity inside a block.

For a level: (1) per site the alpha of its score (alpha.py); (2) per block the greedy picks with these scores
(greedy.py), which say how a block spends any budget; (3) which block gets which budget, the mean being the level:
guessed from each block's sensitivity, then searched, by the divergence from the dense model (sensitivity.py,
evolution.py, divergence.py); (4) the level that skips as much as was asked for (realise.py). Grids, fitness and
population are ours, as the paper's are not public.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from spqt_ti.model.container import Container
from spqt_ti.model.llama import Llama
from spqt_ti.model.sites import SITES
from spqt_ti.sparsity import alpha, greedy, sensitivity, uniform
from spqt_ti.sparsity.block import Block, unmasked
from spqt_ti.sparsity.capture import capture
from spqt_ti.sparsity.checkpoint import Checkpoint, Value
from spqt_ti.sparsity.divergence import BudgetFitness
from spqt_ti.sparsity.evolution import Levels, Search, State, evolve
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.sparsity.realise import realise
from spqt_ti.sparsity.sample import embeddings, spread
from spqt_ti.sparsity.scores import thresholds_at
from spqt_ti.sparsity.teal import check_level

STEP = 0.025  # of a block's weights: one level of a budget
FARTHEST = 0.2  # that a block's budget may be from the mean
WINDOWS, WINDOW = 16, 128  # what individuals are compared on

Weights = dict[tuple[int, str], np.ndarray]


@dataclass(frozen=True)
class Blocks:
    """What was found inside the blocks: alphas f64 [layers, 4], the weights that they make, the picks."""

    alphas: np.ndarray
    weights: Weights
    paths: list[greedy.Path]


@dataclass(frozen=True)
class Budgets:
    """Levels of the blocks' budgets; costs of equal ones, and of the best after each generation, the start's first."""

    levels: Levels
    even_cost: float
    history: tuple[float, ...]


@dataclass(frozen=True)
class WisparseCalibration:
    """A text, and how to search on it; `policy` searches."""

    llama: Llama
    container: Container
    text: str
    tokens: Sequence[int]
    search: Search = field(default_factory=Search)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)

    def policy(self, sparsity: float) -> SparsityPolicy:
        """Search for one level. Raises PolicyError outside 0 .. 0.9."""
        check_level(sparsity, "WiSparse")
        blocks = self._inside_blocks(sparsity)
        tables = self._quantiles(sparsity, blocks)
        found = self._budgets(sparsity, blocks, tables)

        def budgets(level: float) -> np.ndarray:
            return np.clip(level + STEP * np.array(found.levels), 0, greedy.MOST)

        def thresholds(level: float) -> np.ndarray:
            return thresholds_at(tables, _sparsities(blocks, budgets(level)))

        level = realise(self.llama, self.tokens, sparsity, greedy.MOST, thresholds, blocks.weights)
        source = {
            "text_sha256": uniform.sha256(self.text), "tokens": len(self.tokens), "seed": self.search.seed,
            "generations": self.search.generations, "offspring": self.search.offspring,
            "kl_even": found.even_cost, "kl_start": found.history[0], "kl_found": found.history[-1],
            "level": round(level, 6), "steps": list(found.levels), "alphas": blocks.alphas.tolist(),
        }  # fmt: skip
        fingerprint = self.container.fingerprint
        return SparsityPolicy("wisparse", sparsity, thresholds(level), fingerprint, source, blocks.weights)

    def _inside_blocks(self, sparsity: float) -> Blocks:
        """Alphas and picks of every block, on a sample that runs densely."""
        name = f"wisparse-{sparsity:g}-blocks"
        arrays = self.checkpoint.load(name, sparsity=sparsity)
        alphas = [] if arrays is None else list(arrays.pop("alphas"))
        paths, weights = greedy.from_arrays(arrays), Weights()
        x = embeddings(self.container, spread(self.tokens, greedy.WINDOWS, greedy.WINDOW))
        layers = self.container.config.num_hidden_layers
        for layer in tqdm(range(layers), desc="WiSparse", unit="block", leave=False, disable=None):
            block = Block.load(self.container, layer)
            dense = block.run(x, unmasked)
            if layer >= len(paths):
                alphas.append(alpha.search(block, dense, sparsity).best)
            found = _site_weights(block, alphas[layer])
            if layer >= len(paths):
                paths.append(greedy.allocate(block, x, found))
                kept = {"alphas": np.array(alphas), **greedy.to_arrays(paths)}
                self.checkpoint.save(name, kept, sparsity=sparsity)
            weights |= {(layer, site): c for site, c in found.items()}
            x = dense.output
        return Blocks(np.array(alphas), weights, paths)

    def _quantiles(self, sparsity: float, blocks: Blocks) -> np.ndarray:
        """Of the scores of all tokens, f32 [layers, 4, 100]."""
        name = f"wisparse-{sparsity:g}-scores"
        counted = capture(self.llama, self.tokens, uniform.WINDOW, blocks.weights, self.checkpoint, name)
        return counted.quantiles(uniform.LEVELS)

    def _budgets(self, sparsity: float, blocks: Blocks, tables: np.ndarray) -> Budgets:
        """Search levels of the blocks' budgets, in steps of STEP from `sparsity`."""
        layers = len(blocks.paths)
        lowest, highest = level_range(sparsity)
        budgets = sparsity + STEP * np.arange(lowest, highest + 1)
        thresholds = np.stack([thresholds_at(tables, _sparsities(blocks, np.full(layers, b))) for b in budgets], axis=1)
        windows = spread(self.tokens, WINDOWS, min(WINDOW, self.llama.context), offset=0.5)
        fitness = BudgetFitness(self.llama, windows, thresholds, -lowest, blocks.weights)
        even = (0,) * layers
        fitness.settle(even)
        cost = float(fitness.costs(even, range(fitness.parts)).mean())
        measured = self._sensitivity(sparsity, fitness, even)
        state = self._evolve(sparsity, fitness, [even, *sensitivity.moves(measured, even, lowest, highest)])
        self.llama.gates.clear()
        self.llama.reset()
        return Budgets(state.levels, cost, state.history)

    def _sensitivity(self, sparsity: float, fitness: BudgetFitness, even: Levels) -> np.ndarray:
        name = f"wisparse-{sparsity:g}-sensitivity"
        known = (self.checkpoint.load(name, sparsity=sparsity) or {}).get("costs")

        def save(costs: np.ndarray) -> None:
            self.checkpoint.save(name, {"costs": costs}, sparsity=sparsity)

        return sensitivity.measure(fitness, even, *level_range(sparsity), known, save)

    def _evolve(self, sparsity: float, fitness: BudgetFitness, starts: Sequence[Levels]) -> State:
        s = self.search
        name = f"wisparse-{sparsity:g}-budgets-{s.offspring}x{s.generations}-seed{s.seed}"
        settings: dict[str, Value] = {"sparsity": sparsity, "search": repr(s)}
        found = _to_state(self.checkpoint.load(name, **settings))

        def save(state: State) -> None:
            self.checkpoint.save(name, _of_state(state), **settings)

        return evolve(fitness, starts, *level_range(sparsity), s, found, save)


def level_range(sparsity: float) -> tuple[int, int]:
    """Lowest and highest level of a budget, in steps from `sparsity`: within FARTHEST of it, and 0 to greedy.MOST."""
    lowest = math.ceil((max(0.0, sparsity - FARTHEST) - sparsity) / STEP - 1e-9)
    highest = math.floor((min(greedy.MOST, sparsity + FARTHEST) - sparsity) / STEP + 1e-9)
    return lowest, highest


def _sparsities(blocks: Blocks, budgets: np.ndarray) -> np.ndarray:
    """f64 [layers, 4]: how the blocks spend `budgets` f64 [layers]."""
    return np.array([path.at(budget) for path, budget in zip(blocks.paths, budgets, strict=True)])


def _site_weights(block: Block, alphas: np.ndarray) -> dict[str, np.ndarray]:
    found = {s: alpha.column_weights(block.matrices[s], float(a)) for s, a in zip(SITES, alphas, strict=True)}
    return {site: c for site, c in found.items() if c is not None}


def _of_state(state: State) -> dict[str, np.ndarray]:
    return {
        "generation": np.array(state.generation), "levels": np.array(state.levels), "costs": state.costs,
        "history": np.array(state.history),
    }  # fmt: skip


def _to_state(arrays: dict[str, np.ndarray] | None) -> State | None:
    if arrays is None:
        return None
    levels: Levels = tuple(arrays["levels"].tolist())
    return State(int(arrays["generation"]), levels, arrays["costs"], tuple(arrays["history"].tolist()))
