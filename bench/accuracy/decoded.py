"""Masked evaluation beside real decoding, token by token, on the same windows: what `spqt perplexity` claims, measured.

    python bench/accuracy/decoded.py smollm2-135m --text evaluation.txt --policy policies/uniform-0.5.json --windows 8

Both see the same selectors, but rounding flips inputs that lie near a threshold, and flips grow from layer to layer
(docs/log.md). So single logits differ, and what has to agree is the mean: differences are paired by token.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import spqt_ti
from spqt_ti.benchmark.provenance import provenance
from spqt_ti.evaluation.perplexity import Scores, compare, windows
from spqt_ti.model.runner import Llama
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.tables import GrowingTable, print_notes
from spqt_ti.texts import read_text


def prefilled(llama: Llama, window: Sequence[int], masked: bool) -> np.ndarray:
    """A Scorer: many tokens at once."""
    half = len(window) // 2
    llama.reset()
    llama.prefill(window[:half], "none", masked)
    return llama.prefill(window[half:-1], "all", masked)


def decoded(llama: Llama, window: Sequence[int]) -> np.ndarray:
    """A Scorer: the decode step, every token."""
    half = len(window) // 2
    llama.reset()
    for token in window[:half]:
        llama.decode(token)
    return np.stack([llama.decode(token).copy() for token in window[half:-1]])


TITLES = (
    "policy", "products", "perplexity, masked", "decoded", "nats per token more", "KL, masked", "decoded",
    "same top 1, masked", "decoded",
)  # fmt: skip


def line(path: str, exact: bool, masked: Scores, real: Scores) -> list[str]:
    """A row of the table."""
    ours, theirs = masked.row(0.0), real.row(0.0)
    change = np.concatenate(real.nll) - np.concatenate(masked.nll)
    error = change.std(ddof=1) / change.size**0.5
    return [
        path, "f32" if exact else "default", f"{ours.perplexity:.3f}", f"{theirs.perplexity:.3f}",
        f"{change.mean():+.4f} ± {error:.4f}", f"{ours.kl_mean:.4f}", f"{theirs.kl_mean:.4f}", f"{ours.top1:.1%}",
        f"{theirs.top1:.1%}",
    ]  # fmt: skip


def main() -> None:
    """Score and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name, .gguf file or quantised directory")
    parser.add_argument("--text", required=True)
    parser.add_argument("--policy", action="append", required=True, help="may be repeated")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=8)
    arguments = parser.parse_args()
    with GrowingTable(TITLES) as table:
        for exact in (True, False):
            model = spqt_ti.load(arguments.model, context=arguments.context, exact=exact)
            llama, ids = model.llama, model.tokenizer.encode(read_text(arguments.text))
            parts = windows(ids, arguments.context, arguments.windows, model.tokenizer.bos)
            for path in arguments.policy:
                policy = SparsityPolicy.load(path)
                policy.check(model.container.fingerprint, llama.config.num_hidden_layers)
                policy.apply(llama)
                masked, real = compare(
                    parts,
                    lambda window, llama=llama: prefilled(llama, window, False),
                    [
                        lambda window, llama=llama: prefilled(llama, window, True),
                        lambda window, llama=llama: decoded(llama, window),
                    ],
                )
                table.add(line(path, exact, masked, real))
    print_notes(
        f"{arguments.model}: {arguments.windows} windows of {arguments.context} of {Path(arguments.text).name}",
        provenance(llama.threads, llama.device),
    )


if __name__ == "__main__":
    main()
