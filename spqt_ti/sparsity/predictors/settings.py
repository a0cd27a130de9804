"""What is asked of predictors, with the paper's choices as defaults and its ablations."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from spqt_ti.errors import PolicyError
from spqt_ti.model.predictors import Executor


class Bias(Enum):
    """What is added to a prediction before its sign counts."""

    NONE = "none"
    GLOBAL = "global"  # one number for a layer
    NEURON = "neuron"


class Importance(Enum):
    """What a neuron's token loses where the neuron is off."""

    GATE = "gate"  # act(gate)
    PRODUCT = "gate*up"  # the input of down
    FULL = "full"  # that, times the norm of the column of down that it meets


@dataclass(frozen=True)
class PredictorSettings:
    """`rank`: numbers between the two matrices of a predictor; None: a 16th of the hidden size (256 of 4096), 8 at
    least. `whiten`: truncate gate by its outputs on the text, not by its own singular values. `attention`: share of the
    inputs that qkv and o skip by thresholds, in the same policy.
    """

    rank: int | None = None
    whiten: bool = True
    bias: Bias = Bias.NEURON
    importance: Importance = Importance.FULL
    executor: Executor = Executor.SEQUENTIAL
    attention: float = 0.0

    def rank_for(self, hidden: int) -> int:
        """The rank in a model of this hidden size. PolicyError for one that it cannot have."""
        rank = self.rank if self.rank is not None else max(hidden // 16, min(8, hidden))
        if not 1 <= rank <= hidden:
            raise PolicyError(f"rank {rank} for predictors, expected 1 to {hidden}, the hidden size of the model")
        return rank
