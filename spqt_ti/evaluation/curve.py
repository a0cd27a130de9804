"""What quality costs: KL from the source, bytes read per token and speed of many ways to store and run a model.

A curve is a file that `bench/accuracy/curve.py` writes; `spqt recommend` picks from it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from spqt_ti.bounded_json import JsonError, parse_object, read_bytes
from spqt_ti.errors import PolicyError

FORMAT = 1
_MOST_BYTES = 16 << 20
_WORD = re.compile(r"(?!-)[a-zA-Z0-9_.,=:+-]{0,80}")


@dataclass(frozen=True)
class Point:
    """A way to run a model. `scheme` and `quantizer` ("rtn", "gptq") of the layers' matrices; `sparse_method` and
    `level` of the policy ("" and 0: dense); `kl` in nats from the source, `kl_se` its standard error over windows;
    `tokens_per_second` where it was measured, with the same threads for all points.
    """

    scheme: str
    quantizer: str
    sparse_method: str
    level: float
    realised_sparsity: float
    bytes_per_token: float
    kl: float
    kl_se: float
    perplexity: float
    same_top1: float
    tokens_per_second: float | None = None

    @property
    def name(self) -> str:
        """`q4_k gptq, teal 40 %`."""
        stored = f"{self.scheme} {self.quantizer}"
        return f"{stored}, {self.sparse_method} {self.level:.0%}" if self.sparse_method else stored


@dataclass(frozen=True)
class Curve:
    """Points of the model whose source has this SHA-256, and `about`: text, windows, machine."""

    model: str
    source_sha256: str
    points: tuple[Point, ...]
    about: dict[str, Any]

    def to_json(self) -> str:
        """The file; a line per point."""
        head = {"spqt_curve": FORMAT, "model": {"name": self.model, "sha256": self.source_sha256}, "about": self.about}
        lines = ",\n".join("    " + json.dumps(dataclasses.asdict(point)) for point in self.points)
        return json.dumps(head, indent=2)[:-2] + ',\n  "points": [\n' + lines + "\n  ]\n}\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Curve:
        """Read what `to_json` wrote; PolicyError says what is wrong with anything else."""
        try:
            fields = parse_object(text)
            if fields["spqt_curve"] != FORMAT:
                raise PolicyError(f"curve format {fields['spqt_curve']!r:.40}, expected {FORMAT}")
            points = tuple(_point(point) for point in fields["points"])
            if not points:
                raise ValueError("it has no points")
            return cls(str(fields["model"]["name"]), str(fields["model"]["sha256"]), points, dict(fields["about"]))
        except KeyError as error:
            raise PolicyError(f"not a curve: {error} is missing") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise PolicyError(f"not a curve: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Curve:
        """Read a file; PolicyError names it."""
        try:
            return cls.from_json(read_bytes(Path(path).expanduser(), _MOST_BYTES))
        except (OSError, JsonError) as error:
            raise PolicyError(f"{path}: cannot read the curve: {error}") from error
        except PolicyError as error:
            raise PolicyError(f"{path}: {error}") from error

    @classmethod
    def known(cls, source_sha256: str | None) -> Curve | None:
        """The curve of a source that comes with the package, if there is one."""
        for entry in resources.files("spqt_ti").joinpath("data").iterdir():
            if entry.name.startswith("curve-") and entry.name.endswith(".json"):
                curve = cls.from_json(entry.read_bytes())
                if curve.source_sha256 == source_sha256:
                    return curve
        return None

    def speed(self, point: Point) -> tuple[float, bool]:
        """Speed over the baseline's (see `baseline`), and whether it was measured: otherwise it is the inverse ratio of
        bytes, which decoding that waits for memory comes near.
        """
        base = self.baseline()
        if point.tokens_per_second and base.tokens_per_second:
            return point.tokens_per_second / base.tokens_per_second, True
        return base.bytes_per_token / point.bytes_per_token, False

    def baseline(self) -> Point:
        """Q4_K rounded to the nearest, dense: what 1x is. PolicyError where the curve does not have it."""
        for point in self.points:
            if (point.scheme, point.quantizer, point.sparse_method) == ("q4_k", "rtn", ""):
                return point
        raise PolicyError("the curve has no dense q4_k rtn, which speeds are relative to")


def recommend(curve: Curve, speed: float | None = None, kl: float | None = None) -> Point:
    """The point of the least KL that is `speed` times as fast as the baseline, or the fastest with at most this `kl`.

    PolicyError unless one of the two is given, and where no point is good enough: it names the best.
    """
    if (speed is None) == (kl is None):
        raise PolicyError("give a speed or a KL, and not both")
    if speed is not None:
        fast = [point for point in curve.points if curve.speed(point)[0] >= speed]
        if not fast:
            fastest = max(curve.points, key=lambda point: curve.speed(point)[0])
            raise PolicyError(
                f"nothing on the curve is {speed:g} times as fast; the fastest is {fastest.name}, "
                f"{curve.speed(fastest)[0]:.2f} times"
            )
        return min(fast, key=lambda point: (point.kl, point.bytes_per_token))
    assert kl is not None
    good = [point for point in curve.points if point.kl <= kl]
    if not good:
        best = min(curve.points, key=lambda point: point.kl)
        raise PolicyError(f"nothing on the curve has a KL of {kl:g}; the nearest is {best.name} with {best.kl:.4f}")
    return max(good, key=lambda point: (curve.speed(point)[0], -point.kl))


def frontier(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats in bytes and KL, by bytes."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bytes_per_token, p.kl)):
        if not found or point.kl < found[-1].kl:
            found.append(point)
    return found


def kl_at_bytes(points: Sequence[Point], bytes_per_token: float) -> float | None:
    """KL of a line of points at a number of bytes, its logarithm linear between neighbours; None beyond the ends."""
    line = sorted(points, key=lambda p: p.bytes_per_token)
    if len(line) < 2 or not line[0].bytes_per_token <= bytes_per_token <= line[-1].bytes_per_token:
        return None
    logs = np.log(np.maximum([p.kl for p in line], 1e-12))
    return float(np.exp(np.interp(bytes_per_token, [p.bytes_per_token for p in line], logs)))


def _point(fields: dict[str, Any]) -> Point:
    for name, kind in Point.__annotations__.items():
        value = fields.get(name)
        if value is None and kind == "float | None":
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (isinstance(value, str) if kind == "str" else number):
            raise ValueError(f"{name} is {value!r:.40}")
        if isinstance(value, str) and not _WORD.fullmatch(value):  # it is shown as part of a command
            raise ValueError(f"{name} is {value!r:.40}, expected a word")
    point = Point(**fields)
    if not point.bytes_per_token > 0:
        raise ValueError(f"bytes_per_token is {point.bytes_per_token}")
    return point
