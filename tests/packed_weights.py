"""Folders of GPTQ, AWQ and mlx from known whole numbers, packed value by value as the writers' public code does:
AutoGPTQ's `QuantLinear.pack`, AutoAWQ's `WQLinear_GEMM.from_linear`, mlx's `mlx.core.quantize`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tiny_models import write_huggingface

from spqt_ti.model.config import ModelConfig

AWQ_PLACES = {0: 0, 2: 1, 4: 2, 6: 3, 1: 4, 3: 5, 5: 6, 7: 7}  # output of eight -> its place in a word


@dataclass(frozen=True)
class Case:
    """One way to pack; `act_order` permutes which group an input is of."""

    kind: str
    group: int
    bits: int = 4
    symmetric: bool = False
    act_order: bool = False
    version: int = 1


def write_packed(
    directory: Path, config: ModelConfig, weights: dict[str, np.ndarray], case: Case
) -> dict[str, np.ndarray]:
    """Write a folder whose layers' matrices (mlx: the embedding too) are packed; return name -> f64 of all tensors."""
    rng = np.random.default_rng(7)
    stored, exact = {}, {}
    for name, values in weights.items():
        module = name.removesuffix(".weight")
        packs = name.endswith("_proj.weight") or (case.kind == "mlx" and name == "model.embed_tokens.weight")
        if packs:
            parts, exact[name] = pack(values.shape, case, rng)
            stored |= {f"{module}.{part}": array for part, array in parts.items()}
        else:
            stored[name] = values
            exact[name] = values.astype(np.float64)
    write_huggingface(directory, config, weights)
    save_file(stored, directory / "model.safetensors")
    fields = json.loads((directory / "config.json").read_text()) | described(case)
    (directory / "config.json").write_text(json.dumps(fields))
    return exact


def described(case: Case) -> dict[str, object]:
    """The keys of config.json."""
    if case.kind == "mlx":
        return {"quantization": {"group_size": case.group, "bits": case.bits},
                "quantization_config": {"group_size": case.group, "bits": case.bits}}  # fmt: skip
    fields: dict[str, object] = {"quant_method": case.kind, "bits": case.bits, "group_size": case.group}
    if case.kind == "gptq":
        fields |= {"desc_act": case.act_order, "sym": case.symmetric}
        fields |= {"checkpoint_format": "gptq_v2"} if case.version == 2 else {}
    return {"quantization_config": fields}


def pack(shape: tuple[int, ...], case: Case, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Stored parts and the f64 weights [out, in] that they mean, of random whole numbers and f16 scales."""
    rows, cols = shape
    count, most = 32 // case.bits, (1 << case.bits) - 1
    groups = -(-cols // case.group)
    group_of = np.arange(cols) // case.group
    if case.act_order:
        group_of = rng.permutation(group_of)
    q = rng.integers(0, most + 1, (rows, cols))
    scales = rng.uniform(0.002, 0.02, (rows, groups)).astype(np.float16)
    if case.kind == "mlx":
        biases = rng.uniform(-0.1, 0.0, (rows, groups)).astype(np.float16)
        words = np.zeros((rows, cols // count), np.uint32)
        for i in range(rows):
            for j in range(cols):
                words[i, j // count] |= np.uint32(int(q[i, j]) << (case.bits * (j % count)))
        exact = q * scales[:, group_of].astype(np.float64) + biases[:, group_of]
        return {"weight": words, "scales": scales, "biases": biases}, exact
    zeros = np.full((rows, groups), (most + 1) // 2) if case.symmetric else rng.integers(1, most + 1, (rows, groups))
    exact = (q - zeros[:, group_of]) * scales[:, group_of].astype(np.float64)
    stored_zeros = zeros - (1 if (case.kind, case.version) == ("gptq", 1) else 0)
    zero_words = np.zeros((groups, rows // count), np.uint32)
    for g in range(groups):
        for i in range(rows):
            place = AWQ_PLACES[i % 8] if case.kind == "awq" else i % count
            zero_words[g, i // count] |= np.uint32(int(stored_zeros[i, g]) << (case.bits * place))
    words = np.zeros((cols, rows // 8) if case.kind == "awq" else (cols // count, rows), np.uint32)
    for i in range(rows):
        for j in range(cols):
            if case.kind == "awq":
                words[j, i // 8] |= np.uint32(int(q[i, j]) << (4 * AWQ_PLACES[i % 8]))
            else:
                words[j // count, i] |= np.uint32(int(q[i, j]) << (case.bits * (j % count)))
    parts = {"qweight": words.view(np.int32), "qzeros": zero_words.view(np.int32),
             "scales": np.ascontiguousarray(scales.T)}  # fmt: skip
    if case.kind == "gptq":
        parts["g_idx"] = group_of.astype(np.int32)
    return parts, exact
