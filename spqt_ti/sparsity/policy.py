"""What decoding needs to know of sparsity: per layer and site a threshold and, for some methods, a weight of every
input or a predictor of neurons, and where it all comes from.

A policy is a small JSON file that can be read, compared and shared. Predictors are in a safetensors file beside it,
which the JSON names with its hash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from spqt_ti.atomic import written_whole
from spqt_ti.bounded_json import JsonError, parse_object, read_bytes
from spqt_ti.errors import PolicyError
from spqt_ti.model.predictors import Executor, NeuronPredictor
from spqt_ti.model.selectors import Selectors
from spqt_ti.model.sites import SITES
from spqt_ti.sparsity.predictors import files

FORMAT = 2
WITH_PREDICTORS = 3  # the format of policies that have them
READABLE = (1, 2, 3)  # format 1 had no weights
_MOST_BYTES = 1 << 30  # a policy with weights for 70 billion parameters has about 100 MB
_MOST_VALUES = 1 << 25  # of which 4 million are weights


Typed = TypeVar("Typed")


class Runner(Protocol):
    """What a policy is applied to: `model.runner.Llama`."""

    @property
    def selectors(self) -> Selectors:
        """Thresholds and weights of the sites."""

    def set_predictors(
        self, predictors: Mapping[int, NeuronPredictor] | None, executor: Executor | str = Executor.SEQUENTIAL
    ) -> None:
        """Run these layers' feed-forward networks by predictors, and no others."""


@dataclass(frozen=True)
class SparsityPolicy:
    """Thresholds f32 [layers, 4] (sites in the order of SITES): an input is active where `|x| > threshold`,
    or `|x| * weight > threshold` for a site with `weights`; a threshold of 0 runs the site dense.

    `weights`: (layer, site) -> f32 [cols] of 0 or more. `predictors`: layer -> what runs its feed-forward network, by
    the `executor`; the others have none. `sparsity` is the level aimed at, `model` the fingerprint of
    the container it was made for, `calibration` what it was made from.
    """

    method: str
    sparsity: float
    thresholds: np.ndarray
    model: str
    calibration: dict[str, Any] = field(default_factory=dict)
    weights: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)
    predictors: dict[int, NeuronPredictor] = field(default_factory=dict)
    executor: Executor = Executor.SEQUENTIAL

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
        beyond = [layer for layer in self.predictors if not 0 <= layer < len(t)]
        if beyond:
            raise PolicyError(f"a predictor for layer {beyond[0]}, which the thresholds do not have")

    def check(self, model: str, layers: int) -> None:
        """Raise PolicyError unless the policy was made for the model with this fingerprint and number of layers."""
        if self.model != model:
            raise PolicyError(
                f"the policy was made for model {self.model}, this one is {model}: "
                "thresholds do not carry over, so calibrate again"
            )
        if len(self.thresholds) != layers:
            raise PolicyError(f"the policy has {len(self.thresholds)} layers, the model {layers}")

    def apply(self, llama: Runner) -> None:
        """Have a model that `check` accepts decode so; PolicyError if weights or predictors do not fit it."""
        be_dense(llama)
        llama.selectors.thresholds[:] = self.thresholds
        try:
            for (layer, site), c in self.weights.items():
                llama.selectors.weigh(layer, site, c)
            if self.predictors:
                llama.set_predictors(self.predictors, self.executor)
        except ValueError as error:
            be_dense(llama)
            raise PolicyError(f"layer {layer}: {error}") from error
        except PolicyError:
            be_dense(llama)
            raise

    def to_json(self, file: str = f"policy{files.SUFFIX}") -> str:
        """The policy as JSON text, one line per layer and one per site with weights; `file`: name of the one with its
        predictors, if it has some.
        """
        factors = files.Reference.to(file, files.content(self.predictors)) if self.predictors else None
        head = {
            "format": WITH_PREDICTORS if factors else FORMAT, "method": self.method, "sparsity": self.sparsity,
            "model": self.model, "calibration": self.calibration,
            **({"executor": self.executor.value, "predictors": factors.to_dict()} if factors else {}),
            "sites": list(SITES),
        }  # fmt: skip
        rows = ",\n".join("    " + json.dumps([float(v) for v in row]) for row in self.thresholds)
        weights = ",\n".join(
            f'    "{layer}.{site}": ' + json.dumps([float(v) for v in c]) for (layer, site), c in self.weights.items()
        )
        table = ',\n  "weights": {\n' + weights + "\n  }" if weights else ""
        return json.dumps(head, indent=2)[:-2] + ',\n  "thresholds": [\n' + rows + "\n  ]" + table + "\n}\n"

    @classmethod
    def from_json(cls, text: str | bytes, folder: Path | None = None) -> SparsityPolicy:
        """Read what `to_json` wrote; PolicyError says what is wrong with anything else. `folder`: where the file with
        predictors is.
        """
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
                *_predictors(fields, folder),
            )
        except KeyError as error:
            raise PolicyError(f"not a sparsity policy: {error} is missing") from error
        except (ValueError, TypeError, OverflowError) as error:
            raise PolicyError(f"not a sparsity policy: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> SparsityPolicy:
        """Read a policy file; PolicyError names the file."""
        try:
            expanded = Path(path).expanduser()
            return cls.from_json(read_bytes(expanded, _MOST_BYTES), expanded.parent)
        except (OSError, JsonError) as error:
            raise PolicyError(f"{path}: cannot read the policy: {error}") from error
        except PolicyError as error:
            raise PolicyError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write a policy file, to a temporary name first, after the file with its predictors, if it has some, which is
        named as the policy with another ending. PolicyError names a file that cannot be written.
        """
        expanded = Path(path).expanduser()
        factors = expanded.with_suffix(files.SUFFIX)
        if self.predictors:
            files.write(factors, self.predictors)
        write_text(expanded, self.to_json(factors.name))


def be_dense(llama: Runner) -> None:
    """Have a model decode without any policy."""
    llama.selectors.clear()
    llama.set_predictors(None)


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


def _predictors(fields: Mapping[str, Any], folder: Path | None) -> tuple[dict[int, NeuronPredictor], Executor]:
    if fields.get("predictors") is None:
        return {}, Executor.SEQUENTIAL
    if folder is None:
        raise PolicyError("the policy has predictors in a file beside it: load it from its path")
    reference = files.Reference.of(_typed(fields["predictors"], "predictors", dict))
    return files.read(folder, reference), Executor(fields["executor"])


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
