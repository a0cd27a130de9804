"""What exact zeros of a ReLU model could save in prefill: inputs of down that are zero for a whole tile of tokens.

    python bench/accuracy/texts.py texts
    python bench/accuracy/zero_inputs.py reglu-tiny --text texts/speeches.txt

A prompt's product reads a matrix once for a chunk of tokens, and a column can be left out where its input is zero for
all tokens that share it. Kernels have four tokens in registers and multiply two neighbouring columns at once, so that
"pairs" of four tokens are what they could leave out as they are.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import spqt_ti
from spqt_ti.errors import SpqtError
from spqt_ti.evaluation.perplexity import windows
from spqt_ti.model.reference import unmasked
from spqt_ti.sparsity.search.sample import embeddings
from spqt_ti.sparsity.search.stored_layer import StoredLayer
from spqt_ti.tables import Table, print_table
from spqt_ti.texts import read_text

TILES = (1, 4, 8, 16, 32, 64, 128)


def zeros(x: np.ndarray, tile: int, columns: int = 1) -> float:
    """Share of groups of `columns` neighbouring columns of x [windows, tokens, cols] that are zero for all of `tile`
    neighbouring tokens; tokens that fill no tile are left out.
    """
    count, tokens, cols = x.shape
    on = (x != 0)[:, : tokens // tile * tile, : cols // columns * columns]
    groups = on.reshape(count, tokens // tile, tile, cols // columns, columns).any(axis=(2, 4))
    return float(1 - groups.mean())


def table_of(arguments: argparse.Namespace) -> Table:
    """Means over layers, and the layers with the least and the most."""
    model = spqt_ti.load(arguments.model, threads=arguments.threads)
    ids = model.tokenizer.encode(read_text(arguments.text))
    x = embeddings(model.container, windows(ids, arguments.context, arguments.windows, model.tokenizer.bos))
    found = []  # [layers][tiles][single columns, pairs]
    for index in range(model.container.config.num_hidden_layers):
        trace = StoredLayer.load(model.container, index).run(x, unmasked)
        found.append([[zeros(trace.inputs["down"], tile, columns) for columns in (1, 2)] for tile in TILES])
        x = trace.output
    shares = np.array(found)
    lines = [
        [f"{tile}", *(f"{s:.1%}" for s in (one.mean(), one.min(), one.max(), pairs.mean()))]
        for tile, (one, pairs) in zip(TILES, shares.transpose(1, 2, 0), strict=True)
    ]
    return Table(["tokens", "zero columns", "least of a layer", "most", "zero pairs"], lines)


def main() -> None:
    """Run the model densely, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name, Hugging Face directory or quantised directory")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    try:
        table = table_of(arguments)
    except SpqtError as error:
        sys.exit(f"error: {error}")
    print_table(table, f"inputs of down, {arguments.windows} windows of {arguments.context} of {arguments.text.name}")


if __name__ == "__main__":
    main()
