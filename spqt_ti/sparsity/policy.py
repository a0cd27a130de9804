"""What decoding needs to know of sparsity: per layer and site a threshold and, for some methods, a weight of every
input, and where it all comes from.

A policy is a small JSON file that can be read, compared and shared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from spqt_ti.atomic import written_whole
from spqt_ti.bounded_json import JsonError, parse_object, read_bytes
from spqt_ti.errors import PolicyError
from spqt_ti.model.selectors import Selectors
from spqt_ti.model.sites import SITES

FORMAT = 2
READABLE = (1, 2)  # format 1 had no weights
_MOST_BYTES = 1 << 30  # a policy with weights for 70 billion parameters has about 100 MB
_MOST_VALUES = 1 << 25  # of which 4 million are weights


Typed = TypeVar("Typed")


@dataclass(frozen=True)
class SparsityPolicy:
    """Thresholds f32 [layers, 4] (sites in the order of SITES): an input is active where |x| > threshold, or |x| *
    weight > threshold for a site with `weights`; a threshold of 0 runs the site dense.

    `weights`: (layer, site) -> f32 [cols] of 0 or more. `sparsity` is the level aimed at, `model` the fingerprint of
    the container it was made for, `calibration` what it was made from.
    """

    method: str
    sparsity: float
    thresholds: np.ndarray
    model: str
    calibration: dict[str, Any] = field(default_factory=dict)
    weights: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        t = self.thresholds
        if t.ndim != 2 or t.shape[1] != len(SITES):
            raise PolicyError(f"thresholds have shape {list(t.shape)}, expected [layers, {len(SITES)}]")
        if not (np.isfinite(t).all() and (t >= 0).all()):
            raise PolicyError("thresholds must be numbers of 0 or more")
        for (layer, site), c in self.weights.items():
            if not 0 <= layer < len(t) or site not in SITES:
                raise PolicyError(f"weights for layer {layer}, site {site!r}, which the thresholds do not have")
            if c.ndim != 1 or not (np.isfinite(c).all() and (c >= 0).all()):
                raise PolicyError(f"weights of layer {layer}, {site}: expected a list of numbers of 0 or more")

    def check(self, model: str, layers: int) -> None:
        """Raise PolicyError unless the policy was made for the model with this fingerprint and number of layers."""
        if self.model != model:
            raise PolicyError(
                f"the policy was made for model {self.model}, this one is {model}: "
                "thresholds do not carry over, so calibrate again"
            )
        if len(self.thresholds) != layers:
            raise PolicyError(f"the policy has {len(self.thresholds)} layers, the model {layers}")

    def apply(self, selectors: Selectors) -> None:
        """Make these the selectors of a model that `check` accepts; PolicyError if weights do not fit it."""
        selectors.clear()
        selectors.thresholds[:] = self.thresholds
        for (layer, site), c in self.weights.items():
            try:
                selectors.weigh(layer, site, c)
            except ValueError as error:
                selectors.clear()
                raise PolicyError(f"layer {layer}: {error}") from error

    def to_json(self) -> str:
        """The policy as JSON text, one line per layer and one per site with weights."""
        head = {
            "format": FORMAT, "method": self.method, "sparsity": self.sparsity, "model": self.model,
            "calibration": self.calibration, "sites": list(SITES),
        }  # fmt: skip
        rows = ",\n".join("    " + json.dumps([float(v) for v in row]) for row in self.thresholds)
        weights = ",\n".join(
            f'    "{layer}.{site}": ' + json.dumps([float(v) for v in c]) for (layer, site), c in self.weights.items()
        )
        table = ',\n  "weights": {\n' + weights + "\n  }" if weights else ""
        return json.dumps(head, indent=2)[:-2] + ',\n  "thresholds": [\n' + rows + "\n  ]" + table + "\n}\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> SparsityPolicy:
        """Read what `to_json` wrote; PolicyError says what is wrong with anything else."""
        try:
            fields = parse_object(text, _MOST_VALUES)
            if fields["format"] not in READABLE:
                raise PolicyError(f"policy format {fields['format']!r} is not supported, expected {FORMAT}")
            if fields["sites"] != list(SITES):
                raise PolicyError(f"policy sites are {fields['sites']}, expected {list(SITES)}")
            weights = _typed(fields.get("weights", {}), "weights", dict)
            return cls(
                _typed(fields["method"], "method", str),
                _level(fields["sparsity"]),
                _f32(fields["thresholds"]),
                _typed(fields["model"], "model", str),
                _typed(fields["calibration"], "calibration", dict),
                {_layer_and_site(name): _f32(c) for name, c in weights.items()},
            )
        except KeyError as error:
            raise PolicyError(f"not a sparsity policy: {error} is missing") from error
        except (ValueError, TypeError, OverflowError) as error:
            raise PolicyError(f"not a sparsity policy: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> SparsityPolicy:
        """Read a policy file; PolicyError names the file."""
        try:
            return cls.from_json(read_bytes(Path(path).expanduser(), _MOST_BYTES))
        except (OSError, JsonError) as error:
            raise PolicyError(f"{path}: cannot read the policy: {error}") from error
        except PolicyError as error:
            raise PolicyError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write a policy file, to a temporary name first; PolicyError names a file that cannot be written."""
        write_text(Path(path).expanduser(), self.to_json())


def write_text(path: Path, text: str) -> None:
    """Put a file in place whole or not at all; PolicyError names it if that is impossible."""
    try:
        with written_whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PolicyError(f"{path}: cannot be written: {error}") from error


def _layer_and_site(name: str) -> tuple[int, str]:
    """`3.down` -> (3, "down")."""
    layer, _, site = name.partition(".")
    if site not in SITES or f"{int(layer)}" != layer:
        raise ValueError(f"weights of {name!r}, expected LAYER.SITE with a site of {', '.join(SITES)}")
    return int(layer), site


def _typed(value: Any, name: str, wanted: type[Typed]) -> Typed:
    if not isinstance(value, wanted):
        raise ValueError(f"{name} is {value!r:.80}, expected {'text' if wanted is str else 'an object'}")
    return value


def _f32(values: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # becomes infinity, which is refused
        return np.array(values, np.float32)


def _level(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"sparsity is {value!r:.80}, expected a number between 0 and 1")
    return float(value)
