"""Weights that others have quantised: safetensors of GPTQ and AWQ, and mlx folders, brought back to f32.

* GPTQ (AutoGPTQ, GPTQModel): `qweight` int32 [in / n, out] has n = 32 / bits inputs of an output per word, the first in
  the lowest bits; `qzeros` [groups, out / n], `scales` [groups, out]; `g_idx` [in] is the group of an input, which
  act-order permutes. A weight is scale * (q - zero). The format "gptq" stores zero - 1, "gptq_v2" the zero itself.
  AutoGPTQ's readers add the 1 modulo 2^bits; so does this one.
* AWQ (AutoAWQ, "gemm"): `qweight` int32 [in, out / 8] has 8 outputs of an input per word, in the order 0, 2, 4, 6, 1,
  3, 5, 7; so has `qzeros` [groups, out / 8]. A weight is scale * (q - zero).
* mlx (mlx.core.quantize, mode "affine"): `weight` uint32 [out, in / n], lowest bits first; `scales` and `biases`
  [out, groups]. A weight is scale * q + bias.

Products and differences of these are exact in f32; mlx's sum is rounded once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import CheckpointError
from spqt_ti.sources.checkpoint import FloatArray, StoredTensor
from spqt_ti.sources.huggingface_tokenizer import read_json

__all__ = ["CONFIG_KEYS", "FILES", "Packing", "dequantised", "read_packing"]

_log = logging.getLogger(__name__)

FILES = ("quantize_config.json", "quant_config.json")  # where early GPTQ and AWQ say it
CONFIG_KEYS = ("quantization_config", "quantization")
_BITS = {"gptq": (2, 4, 8), "awq": (4,), "mlx": (2, 4, 8)}
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # output that each place of a word holds, from the lowest bits
_PARTS = {"gptq": ("qweight", "qzeros", "scales", "g_idx"), "awq": ("qweight", "qzeros", "scales"),
          "mlx": ("weight", "scales", "biases")}  # fmt: skip
_OPTIONAL = ("g_idx",)
_TITLES = {"gptq": "GPTQ", "awq": "AWQ", "mlx": "mlx"}

Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Packing:
    """How a folder's weights are packed; `group`: inputs that share a scale, -1 for all. `zero_offset` is added to
    stored zeros. `modules`: bits and group of single modules (mlx).
    """

    kind: str
    bits: int
    group: int
    zero_offset: int = 0
    modules: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{_TITLES[self.kind]}, {self.bits} bits in groups of {self.group}"

    def of(self, module: str) -> tuple[int, int]:
        """Bits and group of a module."""
        return self.modules.get(module, (self.bits, self.group))


def read_packing(directory: Path, fields: Mapping[str, Any]) -> Packing | None:
    """What `fields` (of config.json), or a file of early writers, say; None where nothing is quantised, or in a way
    that is not read here. CheckpointError for a variant that cannot be read.
    """
    quantised = fields.get("quantization_config")
    mlx = fields.get("quantization")
    try:
        if isinstance(mlx, Mapping):
            return _mlx(mlx)
        if isinstance(quantised, Mapping):
            return _by_method(str(quantised.get("quant_method", "")), quantised)
        if quantised is None and mlx is None:
            for name, method in zip(FILES, ("gptq", "awq"), strict=True):
                if (directory / name).is_file():
                    return _by_method(method, read_json(directory / name))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory}: the quantisation is not described as expected ({error})") from error
    return None


def _by_method(method: str, fields: Mapping[str, Any]) -> Packing | None:
    if method == "gptq":
        variant = str(fields.get("checkpoint_format") or "gptq")
        if variant not in ("gptq", "gptq_v2"):
            raise _refused(f"GPTQ's checkpoint_format {variant!r}", "gptq, gptq_v2")
        if fields.get("dynamic"):
            raise _refused("GPTQ with settings per module (dynamic)", "the same for all modules")
        offset = 1 if variant == "gptq" else 0
        return _checked(Packing("gptq", int(fields["bits"]), int(fields.get("group_size", -1)), offset))
    if method == "awq":
        variant = str(fields.get("version") or "gemm").lower()
        if variant != "gemm" or not fields.get("zero_point", True):
            raise _refused(f"AWQ's version {variant!r} with zero_point {fields.get('zero_point', True)}", "gemm, true")
        bits = fields["bits"] if "bits" in fields else fields["w_bit"]
        group = fields["group_size"] if "group_size" in fields else fields["q_group_size"]
        return _checked(Packing("awq", int(bits), int(group)))
    return None


def _mlx(fields: Mapping[str, Any]) -> Packing:
    if fields.get("mode", "affine") != "affine":
        raise _refused(f"mlx's mode {fields['mode']!r}", "affine")
    bits, group = int(fields["bits"]), int(fields["group_size"])
    modules = {
        name: (int(own.get("bits", bits)), int(own.get("group_size", group)))
        for name, own in fields.items()
        if isinstance(own, Mapping) and own.get("mode", "affine") == "affine"
    }
    packing = _checked(Packing("mlx", bits, group, modules=modules))
    for own_bits, own_group in modules.values():
        _checked(Packing("mlx", own_bits, own_group))
    return packing


def _checked(packing: Packing) -> Packing:
    if packing.bits not in _BITS[packing.kind]:
        known = ", ".join(map(str, _BITS[packing.kind]))
        raise _refused(f"{_TITLES[packing.kind]} with {packing.bits} bits", known)
    if packing.group != -1 and not 0 < packing.group < 1 << 31:
        raise _refused(f"a group of {packing.group:g} weights", "-1, or 1 and more")
    return packing


def _refused(what: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"the weights are already quantised, and {what} is not supported (only {expected}); start from f32, f16 or "
        "bf16 weights"
    )


def dequantised(tensors: Mapping[str, StoredTensor], packing: Packing) -> dict[str, StoredTensor]:
    """The tensors with `weight` of every packed module instead of its parts. CheckpointError where parts are missing
    or do not fit each other.
    """
    marks = (".qweight",) if packing.kind != "mlx" else (".scales",)
    modules = [name[: -len(mark)] for name in tensors for mark in marks if name.endswith(mark)]
    if not modules:
        raise CheckpointError(f"the config says {packing}, but no tensor is packed so")
    found = dict(tensors)
    for module in modules:
        names = {part: f"{module}.{part}" for part in _PARTS[packing.kind]}
        missing = [name for part, name in names.items() if name not in tensors and part not in _OPTIONAL]
        if missing:
            raise CheckpointError(f"tensor {missing[0]} is missing, of weights that are packed ({packing})")
        parts = {part: found.pop(name) for part, name in names.items() if name in tensors}
        found[f"{module}.weight"] = _unpacked(module, parts, packing)
        bias = found.get(f"{module}.bias")
        if packing.kind != "mlx" and bias is not None and not bias.problem and not np.any(bias.load()):
            del found[f"{module}.bias"]  # early writers gave every module one
    _log.info("the weights are %s: dequantised to f32 and quantised again", packing)
    return found


def _unpacked(module: str, parts: Mapping[str, StoredTensor], packing: Packing) -> StoredTensor:
    bits, group = packing.of(module)
    count = 32 // bits
    words = parts["weight" if packing.kind == "mlx" else "qweight"]
    try:
        first, second = words.shape
        shape = {"gptq": (second, first * count), "awq": (second * count, first), "mlx": (first, second * count)}
        rows, cols = shape[packing.kind]
        groups = 1 if group == -1 else -(-cols // group)
        scales, packed_zeros = (groups, rows), (groups, rows // count)
        wanted: dict[str, dict[str, tuple[int, ...]]] = {
            "gptq": {"scales": scales, "qzeros": packed_zeros, "g_idx": (cols,)},
            "awq": {"scales": scales, "qzeros": packed_zeros},
            "mlx": {"scales": (rows, groups), "biases": (rows, groups)},
        }
        for part, expected in wanted[packing.kind].items():
            if part in parts and parts[part].shape != expected:
                raise ValueError(f"{part} has shape {list(parts[part].shape)}, expected {list(expected)}")
    except ValueError as error:
        raise CheckpointError(f"{words.location}: {module} is not packed as {packing} ({error})") from error
    whole = ("weight",) if packing.kind == "mlx" else ("qweight", "qzeros", "g_idx")
    problems = [
        f"has {part} that {tensor.problem}" for part, tensor in parts.items() if tensor.problem and part not in whole
    ]
    problems += [
        f"has {part} of no whole numbers" for part, tensor in parts.items() if part in whole and not tensor.read_whole
    ]
    unpack = {"gptq": _gptq, "awq": _awq, "mlx": _mlx_weight}[packing.kind]
    load = partial(unpack, parts, bits, group, packing.zero_offset)
    return StoredTensor((rows, cols), words.location, load, "; ".join(problems))


def _gptq(parts: Mapping[str, StoredTensor], bits: int, group: int, offset: int) -> FloatArray:
    values = _fields(_whole(parts["qweight"]), bits)  # [in / n, out, n]
    values = values.transpose(0, 2, 1).reshape(-1, values.shape[1])  # [in, out]
    zeros = _fields(_whole(parts["qzeros"]), bits).reshape(-1, values.shape[1])
    zeros = (zeros + offset) & ((1 << bits) - 1)
    scales = parts["scales"].load()
    if "g_idx" in parts:
        groups = _whole(parts["g_idx"])
        if groups.min() < 0 or groups.max() >= len(scales):
            raise ValueError(f"g_idx names group {groups.min()} or {groups.max()} of {len(scales)}")
    else:
        groups = _groups(len(values), group)
    return np.ascontiguousarray(((values.astype(np.float32) - zeros[groups]) * scales[groups]).T, np.float32)


def _awq(parts: Mapping[str, StoredTensor], bits: int, group: int, offset: int) -> FloatArray:
    order = np.argsort(_AWQ_ORDER)
    values, zeros = (_fields(_whole(parts[part]), bits)[..., order] for part in ("qweight", "qzeros"))
    values, zeros = (one.reshape(len(one), -1) for one in (values, zeros))  # [in, out], [groups, out]
    groups = _groups(len(values), group)
    scales = parts["scales"].load()
    return np.ascontiguousarray(((values.astype(np.float32) - zeros[groups]) * scales[groups]).T, np.float32)


def _mlx_weight(parts: Mapping[str, StoredTensor], bits: int, group: int, offset: int) -> FloatArray:
    words = _whole(parts["weight"])
    values = _fields(words, bits).reshape(len(words), -1)  # [out, in]
    groups = _groups(values.shape[1], group)
    scales, biases = parts["scales"].load(), parts["biases"].load()
    return values.astype(np.float32) * scales[:, groups] + biases[:, groups]


def _fields(words: Integers, bits: int) -> npt.NDArray[np.int32]:
    """Words [...] -> their fields [..., 32 / bits], from the lowest bits."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return ((words.astype(np.uint32)[..., None] >> shifts) & np.uint32((1 << bits) - 1)).astype(np.int32)


def _groups(inputs: int, group: int) -> npt.NDArray[np.intp]:
    return np.arange(inputs) // (inputs if group == -1 else group)


def _whole(tensor: StoredTensor) -> Integers:
    assert tensor.read_whole is not None
    return tensor.read_whole()
