"""Quantisation choices measured: row against zigzag superblocks of Q4_K, and the precision of the head.

    python bench/accuracy/quantization.py smollm2-135m --text evaluation.txt --windows 32

First the relative error of every kind of matrix (rms of what quantising changed over rms of the weights), then
perplexity and distance from the model quantised, all in f32 arithmetic (evaluation/float_model.py).

A source that is in 4 bits already has a grid along its rows, which row superblocks find again and zigzag ones cannot.
So all of it is measured twice: on the source, and with uniform noise on the layers' weights, as wide as a step of a
4-bit grid over 32 neighbours, which takes the grid away and leaves weights of the same kind.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from spqt_ti.backend import start
from spqt_ti.benchmark.provenance import provenance
from spqt_ti.evaluation.float_model import FloatModel
from spqt_ti.evaluation.perplexity import Scores, compare, mean_and_error, windows
from spqt_ti.formats import q4_k, q8_0
from spqt_ti.formats.layout import LAYOUTS, dequantize_matrix
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.kernels.pack.quantize import quantize_matrix
from spqt_ti.model.sites import SITES
from spqt_ti.sources import registry
from spqt_ti.sources.open import open_checkpoint
from spqt_ti.tables import Table, print_table
from spqt_ti.texts import read_text


def in_q4_k(w: np.ndarray, layout: str) -> np.ndarray:
    """f32 [rows, cols] as Q4_K keeps it."""
    return dequantize_matrix(quantize_matrix(w, layout, q4_k.SCHEME), *w.shape, layout, q4_k.SCHEME)


def in_q8_0(w: np.ndarray) -> np.ndarray:
    """f32 [rows, cols] as Q8_0 keeps it."""
    return q8_0.dequantize(q8_0.quantize(w.reshape(-1, q8_0.VALUES))).reshape(w.shape)


def without_grid(w: np.ndarray, seed: int = 0) -> np.ndarray:
    """f32 [rows, cols] with noise as wide as a step between 16 levels over 32 neighbours of a row."""
    sub_blocks = w.reshape(-1, 32)
    step = (sub_blocks.max(axis=1) - sub_blocks.min(axis=1)) / np.float32(15)
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, sub_blocks.shape).astype(np.float32)
    return (sub_blocks + step[:, None] * noise).reshape(w.shape)


def with_layers(model: FloatModel, change: Callable[[np.ndarray], np.ndarray]) -> FloatModel:
    """The model with the matrices of its layers changed, stacked as the container stacks them."""
    changed = copy.copy(model)
    changed.layers = [
        dataclasses.replace(layer, matrices={site: change(w) for site, w in layer.matrices.items()})
        for layer in model.layers
    ]
    return changed


def in_layouts(model: FloatModel) -> dict[str, FloatModel]:
    """Layout -> the model with Q4_K layers in it."""
    return {layout: with_layers(model, functools.partial(in_q4_k, layout=layout)) for layout in LAYOUTS}


def with_head(model: FloatModel, table: np.ndarray) -> FloatModel:
    """The model with another head; a tied embedding is the same table."""
    changed = copy.copy(model)
    changed.embedding = table if model.head is model.embedding else model.embedding
    changed.head = table
    return changed


def relative_rmse(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Rms of the difference over rms of `theirs`."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def errors(name: str, source: FloatModel, variants: dict[str, FloatModel]) -> list[dict[str, Any]]:
    """Relative error of every site's matrices in each layout: over all layers, in the best and in the worst layer."""
    rows = []
    for site in SITES:
        for layout, variant in variants.items():
            found = [
                relative_rmse(ours.matrices[site], theirs.matrices[site])
                for ours, theirs in zip(variant.layers, source.layers, strict=True)
            ]
            shape = "x".join(str(n) for n in source.layers[0].matrices[site].shape)
            row = {"weights": name, "site": site, "shape": shape, "layout": layout, "mean": float(np.mean(found))}
            rows.append(row | {"best": min(found), "worst": max(found)})
    return rows


def summary(name: str, score: Scores) -> dict[str, Any]:
    """A line of the second table; the error of KL is over windows."""
    row, (kl, kl_error) = score.row(0.0), mean_and_error(score.kl)
    return {
        "weights": name, "perplexity": row.perplexity, "perplexity_se": row.perplexity_se, "kl_mean": kl,
        "kl_se": kl_error, "kl_p99": row.kl_p99, "top1": row.top1, "tokens": row.tokens,
    }  # fmt: skip


def main() -> None:
    """Quantise, score, print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name, Hugging Face directory or .gguf file")
    parser.add_argument("--text", required=True)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    start("cpu")
    checkpoint = open_checkpoint(registry.resolve(arguments.model))
    tokenizer = Tokenizer(checkpoint.tokenizer_json, checkpoint.config)
    ids = tokenizer.encode(read_text(arguments.text))
    parts = windows(ids, arguments.context, arguments.windows, tokenizer.bos)
    source = FloatModel(checkpoint.config, {name: checkpoint.read(name) for name in checkpoint.names()})
    matrices, rows = [], []
    for name, model, heads in (
        ("source", source, heads_of(source)),
        ("source with noise", with_layers(source, without_grid), {}),
    ):
        layers = in_layouts(model)
        variants = {f"layers Q4_K {layout}": variant for layout, variant in layers.items()}
        variants |= {f"head {kind}": with_head(model, table) for kind, table in heads.items()}
        scores = compare(parts, model.second_half, [model.second_half, *(v.second_half for v in variants.values())])
        matrices += errors(name, model, layers)
        names = [name, *(f"{name}, {variant}" for variant in variants)]
        rows += [summary(*pair) for pair in zip(names, scores, strict=True)]
    print_tables(matrices, rows, arguments.json)


def heads_of(model: FloatModel) -> dict[str, np.ndarray]:
    """Precision -> the head in it."""
    heads = {"F16": model.head.astype(np.float16).astype(np.float32), "Q8_0": in_q8_0(model.head)}
    return heads | {f"Q4_K {layout}": in_q4_k(model.head, layout) for layout in LAYOUTS}


def print_tables(matrices: list[dict[str, Any]], rows: list[dict[str, Any]], as_json: bool) -> None:
    """Both tables, or JSON."""
    if as_json:
        print(json.dumps({"matrices": matrices, "models": rows}, indent=2))
        return
    titles = ["weights", "site", "shape", "layout", "relative RMSE", "best layer", "worst layer"]
    cells = [
        [m["weights"], m["site"], m["shape"], m["layout"], *(f"{m[key]:.4f}" for key in ("mean", "best", "worst"))]
        for m in matrices
    ]
    print_table(Table(titles, cells))
    print()
    cells = [
        [
            r["weights"], f"{r['perplexity']:.2f} ± {r['perplexity_se']:.2f}",
            f"{r['kl_mean']:.4f} ± {r['kl_se']:.4f}", f"{r['kl_p99']:.3f}", f"{r['top1']:.1%}",
        ]
        for r in rows
    ]  # fmt: skip
    print_table(
        Table(["weights", "perplexity", "KL mean", "KL p99", "same top 1"], cells),
        f"{rows[0]['tokens']} tokens scored",
        provenance(None),
    )


if __name__ == "__main__":
    main()
