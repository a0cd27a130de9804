"""Uniform sparsity: at every site the threshold below which the same share of the calibration inputs lies (SpQt's
unified mode).

One pass over a text gives a table of quantiles that serves every level; it is kept beside the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from spqt_ti.atomic import written_whole
from spqt_ti.bounded_json import read_object
from spqt_ti.errors import PolicyError
from spqt_ti.model.runner import Llama
from spqt_ti.sparsity.capture import capture
from spqt_ti.sparsity.checkpoint import Checkpoint
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.sparsity.search.histogram import LEVELS
from spqt_ti.sparsity.search.swept import Elsewhere
from spqt_ti.texts import sha256

FORMAT = 1
MAX_SPARSITY = LEVELS[-1]
WINDOW = 512  # tokens that a calibration text is cut into, whatever the context


@dataclass(frozen=True)
class Calibration:
    """Quantiles f32 [layers, 4, 100] of |x| at LEVELS, of the model with fingerprint `model` on a text."""

    model: str
    text_sha256: str
    tokens: int
    quantiles: np.ndarray

    def policy(self, sparsity: float) -> SparsityPolicy:
        """Thresholds for one sparsity at every site. Raises PolicyError outside 0 .. 0.99."""
        if not 0 <= sparsity <= MAX_SPARSITY:
            raise PolicyError(f"sparsity must be between 0 and {MAX_SPARSITY}, not {sparsity}")
        at = sparsity * 100
        low = min(int(at), len(LEVELS) - 2)
        q = self.quantiles
        thresholds = q[..., low] + (at - low) * (q[..., low + 1] - q[..., low]) if sparsity else np.zeros(q.shape[:2])
        source = {"text_sha256": self.text_sha256, "tokens": self.tokens}
        return SparsityPolicy("uniform", sparsity, thresholds.astype(np.float32), self.model, source)

    def save(self, path: Path) -> None:
        """Write as JSON, to a temporary name first."""
        fields = {
            "format": FORMAT, "model": self.model, "text_sha256": self.text_sha256, "tokens": self.tokens,
            "quantiles": [[[float(f"{v:.7g}") for v in site] for site in layer] for layer in self.quantiles],
        }  # fmt: skip
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(fields), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote; raises PolicyError for anything else."""
        try:
            fields = read_object(path)
            if fields["format"] != FORMAT:
                raise ValueError(f"format {fields['format']!r}")
            with np.errstate(over="ignore"):  # becomes infinity, which is refused
                quantiles = np.array(fields["quantiles"], np.float32)
            if quantiles.ndim != 3 or quantiles.shape[2] != len(LEVELS):
                raise ValueError(f"quantiles of shape {list(quantiles.shape)}")
            if not (np.isfinite(quantiles).all() and (quantiles >= 0).all()):
                raise ValueError("quantiles that are not numbers of 0 or more")
            return cls(str(fields["model"]), str(fields["text_sha256"]), int(fields["tokens"]), quantiles)
        except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
            raise PolicyError(f"{path}: not a calibration ({error}); delete it to calibrate again") from error


def sample_text() -> str:
    """The text that comes with the package, for calibrating where no other is given."""
    return resources.files("spqt_ti").joinpath("data/calibration.txt").read_text(encoding="utf-8")


def calibrate(
    llama: Llama, model: str, text: str, tokens: Sequence[int], checkpoint: Checkpoint | None = None,
    elsewhere: Elsewhere | None = None,
) -> Calibration:  # fmt: skip
    """Measure the quantiles of `tokens` (of `text`, whose hash is kept) on a model with fingerprint `model`.
    `elsewhere`: see `capture`.
    """
    quantiles = capture(llama, tokens, WINDOW, checkpoint=checkpoint, elsewhere=elsewhere).quantiles(LEVELS)
    return Calibration(model, sha256(text), len(tokens), quantiles)
