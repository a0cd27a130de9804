"""Rotations of a source model that leave its logits as they are (QuaRot, arXiv 2404.00456).

RMSNorm without gains commutes with an orthogonal Q, so the residual stream x can become x Q everywhere:

* gains go into the matrices that read the norm's output: W diag(g);
* what reads the stream (q, k, v, gate, up, head) becomes W Q, what writes it (embedding, o, down, and their biases)
  is rotated as the stream is: E Q, Q^T W, b Q. So embedding and head can no longer be tied;
* each head's values (v and its bias) and the columns of o that read them turn by an orthogonal matrix of head_dim, the
  same for all heads: with grouped queries several heads of o read one head of v;
* the input h of down is turned when it is computed (online): h becomes h diag(s) H and down becomes W diag(s) H. The
  signs s cost nothing: up's rows (and bias) have them. H is left to the runner, which config.rotates_down tells.

q and k stay: RoPE and their norms do not commute with it. The mean of the embedding is not taken off: that is right for
LayerNorm and wrong for RMSNorm.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from spqt_ti.container.manifest import online_record
from spqt_ti.errors import QuantizationError
from spqt_ti.model.architectures import NormRule
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.hadamard import ONLINE_RUN, Transform
from spqt_ti.sources.checkpoint import Checkpoint, StoredTensor

__all__ = ["COMPONENTS", "Rotation", "parse_components", "rotated", "rotated_checkpoint"]

COMPONENTS = ("residual", "heads", "down")

F64Array = npt.NDArray[np.float64]
Read = Callable[[str], npt.NDArray[np.floating]]

_BATCH = 1 << 22  # values that are rotated at once: bounds what f64 needs
_EMBEDDING, _HEAD, _FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_READERS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_WRITERS = ("o_proj", "down_proj")


@dataclass(frozen=True)
class Turn:
    """x -> x Q for rows x of `transform.size`: signs f64 [size], then the transform."""

    transform: Transform
    signs: F64Array

    def apply(self, x: npt.NDArray[np.floating]) -> F64Array:
        """x Q, f64, of x [..., n * size]: each run of `size` values is turned by itself."""
        runs = x.reshape(*x.shape[:-1], -1, self.transform.size).astype(np.float64)
        return self.transform.apply(runs * self.signs).reshape(x.shape)


@dataclass(frozen=True)
class Rotation:
    """What is rotated (some of COMPONENTS) and the seed of the signs. `of` checks that the sizes can be rotated."""

    config: ModelConfig  # of the source
    components: tuple[str, ...]
    seed: int

    @classmethod
    def of(cls, config: ModelConfig, components: Iterable[str], seed: int = 0) -> Rotation:
        """QuantizationError for a component that there is not, or a size without a transform: before any work."""
        rotation = cls(config, tuple(dict.fromkeys(components)), seed)
        row = config.architecture
        if rotation.components and (row.norms is not NormRule.BEFORE or row.norm_offset):
            raise QuantizationError(
                f"{config.model_type} cannot be rotated: only models whose norms are before attention and the "
                "feed-forward network, without offset; quantise it without rotating"
            )
        for component in rotation.components:
            if component not in COMPONENTS:
                raise QuantizationError(_unknown(component))
            if component != "down":
                rotation.turn(component)
        if "down" in rotation.components:
            rotation._check_down()
        return rotation

    def _check_down(self) -> None:
        if self.config.architecture.activates_up:
            raise QuantizationError(
                f"the input of down cannot be turned in {self.config.model_type} models: their activation is of up as "
                "well, which so cannot have its signs; leave out this rotation"
            )
        for width in set(self.config.widths()):
            Transform.of(width, ONLINE_RUN)

    @property
    def rotated_config(self) -> ModelConfig:
        """Of the rotated model: its head is a matrix of its own where the residual stream is rotated."""
        tied = self.config.tie_word_embeddings and "residual" not in self.components
        return replace(self.config, tie_word_embeddings=tied, rotates_down="down" in self.components)

    def turn(self, component: str) -> Turn:
        """The rotation of residual or heads, the same in all layers: the residual stream is one."""
        size = self.config.hidden_size if component == "residual" else self.config.head_dim
        return _turn(Transform.of(size), self.seed, COMPONENTS.index(component))

    def turn_down(self, layer: int) -> Turn:
        """The rotation of the input of a layer's down."""
        transform = Transform.of(self.config.widths()[layer], ONLINE_RUN)
        return _turn(transform, self.seed, COMPONENTS.index("down"))

    def records(self) -> list[dict[str, Any]]:
        """What a container says of it (see `Manifest.transformations`): what is in the weights alone, then what has a
        part at run time.
        """
        transforms = {name: str(self.turn(name).transform) for name in self.components if name != "down"}
        found: list[dict[str, Any]] = []
        if transforms:
            found.append({"kind": "rotation", "seed": self.seed, "transforms": transforms})
        if "down" in self.components:
            found.append({**online_record(self.rotated_config), "seed": self.seed})
        return found

    def tensor(self, name: str, read: Read) -> npt.NDArray[np.floating]:
        """A tensor of the rotated model, computed in f64, in the type that `read` gives those of the source in."""
        values = read(_EMBEDDING if name == _HEAD and self.config.tie_word_embeddings else name)
        dtype = values.dtype
        if "heads" in self.components:
            values = self._with_heads(name, values)
        if "residual" in self.components:
            values = self._with_residual(name, values, read)
        if "down" in self.components:
            values = self._with_down(name, values)
        return values.astype(dtype, copy=False)

    def _with_heads(self, name: str, values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        turn, (projection, kind) = self.turn("heads"), _parts(name)
        if projection == "v_proj":
            return _turned_columns(values, turn) if kind == "weight" else turn.apply(values)
        if projection == "o_proj" and kind == "weight":
            return _turned_rows(values, turn)
        return values

    def _with_residual(
        self, name: str, values: npt.NDArray[np.floating], read: Read
    ) -> npt.NDArray[np.floating]:  # fmt: skip
        turn, (projection, kind) = self.turn("residual"), _parts(name)
        if name == _EMBEDDING:
            return _turned_rows(values, turn)
        if name == _HEAD:
            return _turned_rows(values, turn, read(_FINAL_NORM))
        if projection in _READERS and kind == "weight":
            return _turned_rows(values, turn, read(self._norm_of(name)))
        if projection in _WRITERS:
            return _turned_columns(values, turn) if kind == "weight" else turn.apply(values)
        if name == _FINAL_NORM or any(name.endswith(f".{norm}") for norm in self._residual_norms().values()):
            return np.ones_like(values)
        return values

    def _with_down(self, name: str, values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        projection, kind = _parts(name)
        if projection not in ("up_proj", "down_proj"):
            return values
        turn = self.turn_down(int(name.split(".")[2]))
        if projection == "up_proj":
            return values * turn.signs.reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)
        return _turned_rows(values, turn) if kind == "weight" else values

    def _norm_of(self, name: str) -> str:
        """Gains of the norm whose output a projection reads."""
        layer, _, module = name.partition(".self_attn." if ".self_attn." in name else ".mlp.")
        role = "attention_norm" if module[0] in "qkv" else "ffn_norm"
        return f"{layer}.{self._residual_norms()[role]}"

    def _residual_norms(self) -> dict[str, str]:
        return {norm.role: norm.tensor for norm in self.config.norms() if norm.role in ("attention_norm", "ffn_norm")}


def rotated(
    checkpoint: Checkpoint, components: Iterable[str], seed: int = 0
) -> tuple[Checkpoint, list[dict[str, Any]]]:
    """The source with `components` rotated, and what a container says of it: nothing where there are none.

    QuantizationError as `Rotation.of`.
    """
    rotation = Rotation.of(checkpoint.config, components, seed)
    if not rotation.components:
        return checkpoint, []
    return rotated_checkpoint(checkpoint, rotation), rotation.records()


def rotated_checkpoint(checkpoint: Checkpoint, rotation: Rotation) -> Checkpoint:
    """A source whose tensors are those of the rotated model; each is rotated when it is read."""

    def stored(name: str, shape: tuple[int, ...]) -> StoredTensor:
        origin = _EMBEDDING if name not in checkpoint.tensors else name
        return StoredTensor(
            shape,
            checkpoint.tensors[origin].location,
            lambda: np.asarray(rotation.tensor(name, checkpoint.read), np.float32),
        )

    config = rotation.rotated_config
    tensors = {name: stored(name, shape) for name, shape in config.tensor_shapes().items()}
    return replace(checkpoint, config=config, tensors=tensors)


def parse_components(text: str) -> tuple[str, ...]:
    """What a user writes: "residual,heads,down". QuantizationError for a component that there is not."""
    components = tuple(item.strip() for item in text.split(","))
    for component in components:
        if component not in COMPONENTS:
            raise QuantizationError(_unknown(component))
    return components


@functools.lru_cache(maxsize=64)
def _turn(transform: Transform, seed: int, number: int) -> Turn:
    generator = np.random.default_rng((seed, number))
    return Turn(transform, generator.choice([-1.0, 1.0], transform.size))


def _unknown(component: str) -> str:
    return f"unknown rotation {component!r}; there are: {', '.join(COMPONENTS)}"


def _parts(name: str) -> tuple[str, str]:
    """("q_proj", "weight") of "model.layers.0.self_attn.q_proj.weight"."""
    _, projection, kind = f"..{name}".rsplit(".", 2)
    return projection, kind


def _turned_rows(
    w: npt.NDArray[np.floating], turn: Turn, gains: npt.NDArray[np.floating] | None = None
) -> npt.NDArray[np.floating]:
    """W diag(gains) Q: what reads a rotated input."""
    out = np.empty_like(w)
    step = max(1, _BATCH // w.shape[1])
    for start in range(0, len(w), step):
        rows = w[start : start + step].astype(np.float64)
        out[start : start + step] = turn.apply(rows if gains is None else rows * gains)
    return out


def _turned_columns(w: npt.NDArray[np.floating], turn: Turn) -> npt.NDArray[np.floating]:
    """Q^T W: what writes a rotated output."""
    out = np.empty_like(w)
    step = max(1, _BATCH // len(w))
    for start in range(0, w.shape[1], step):
        out[:, start : start + step] = turn.apply(np.ascontiguousarray(w[:, start : start + step].T)).T
    return out
