"""What decoding needs to know of sparsity: a threshold per layer and site, and where it comes from.

A policy is a small JSON file that can be read, compared and shared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spqt_ti.errors import PolicyError
from spqt_ti.model.sites import SITES

FORMAT = 1


@dataclass(frozen=True)
class SparsityPolicy:
    """Thresholds f32 [layers, 4] (sites in the order of SITES): an input is active where |x| > threshold; 0 runs the
    site dense.

    `sparsity` is the level aimed at, `model` the fingerprint of the container it was made for, `calibration` what it
    was made from.
    """

    method: str
    sparsity: float
    thresholds: np.ndarray
    model: str
    calibration: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        t = self.thresholds
        if t.ndim != 2 or t.shape[1] != len(SITES):
            raise PolicyError(f"thresholds have shape {list(t.shape)}, expected [layers, {len(SITES)}]")
        if not (np.isfinite(t).all() and (t >= 0).all()):
            raise PolicyError("thresholds must be numbers of 0 or more")

    def check(self, model: str, layers: int) -> None:
        """Raise PolicyError unless the policy was made for the model with this fingerprint and number of layers."""
        if self.model != model:
            raise PolicyError(
                f"the policy was made for model {self.model}, this one is {model}: "
                "thresholds do not carry over, so calibrate again"
            )
        if len(self.thresholds) != layers:
            raise PolicyError(f"the policy has {len(self.thresholds)} layers, the model {layers}")

    def to_json(self) -> str:
        """The policy as JSON text, one line per layer."""
        head = {
            "format": FORMAT, "method": self.method, "sparsity": self.sparsity, "model": self.model,
            "calibration": self.calibration, "sites": list(SITES),
        }  # fmt: skip
        rows = ",\n".join("    " + json.dumps([float(v) for v in row]) for row in self.thresholds)
        return json.dumps(head, indent=2)[:-2] + ',\n  "thresholds": [\n' + rows + "\n  ]\n}\n"

    @classmethod
    def from_json(cls, text: str) -> SparsityPolicy:
        """Read what `to_json` wrote; PolicyError says what is wrong with anything else."""
        try:
            fields = json.loads(text)
            if fields["format"] != FORMAT:
                raise PolicyError(f"policy format {fields['format']!r} is not supported, expected {FORMAT}")
            if fields["sites"] != list(SITES):
                raise PolicyError(f"policy sites are {fields['sites']}, expected {list(SITES)}")
            thresholds = np.array(fields["thresholds"], np.float32)
            return cls(
                str(fields["method"]),
                float(fields["sparsity"]),
                thresholds,
                str(fields["model"]),
                dict(fields["calibration"]),
            )
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise PolicyError(f"not a sparsity policy: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> SparsityPolicy:
        """Read a policy file; PolicyError names the file."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise PolicyError(f"{path}: cannot read the policy: {error}") from error
        except PolicyError as error:
            raise PolicyError(f"{path}: {error}") from error
