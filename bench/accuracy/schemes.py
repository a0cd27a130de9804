"""What each way to store a model costs: bytes read per token, perplexity and distance from the source.

    python bench/accuracy/schemes.py smollm2-135m --text evaluation.txt --storage q4_k --storage q6_k --storage q8_0
    python bench/accuracy/schemes.py smollm2-135m --text evaluation.txt --storage q4_k --container made-by-gptq

Quantised models go through the product's own runner (prefill, every token dense), the source through f32 NumPy
(evaluation/float_model.py). KL is from the source, ± its standard error over windows.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spqt_ti.benchmark.provenance import provenance
from spqt_ti.container import Container
from spqt_ti.convert.quantize import quantize
from spqt_ti.evaluation.float_model import FloatModel
from spqt_ti.evaluation.perplexity import Scores, compare, mean_and_error, windows
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import Site, inputs_per_layer
from spqt_ti.sources import registry
from spqt_ti.sources.open import open_checkpoint
from spqt_ti.tables import Table, print_table
from spqt_ti.texts import check_disjoint, read_text

TITLES = [
    "stored", "bits per weight", "MB per token", "perplexity", "KL from the source", "same top 1",
]  # fmt: skip


def prefilled(llama: Llama, window: Sequence[int]) -> np.ndarray:
    """A Scorer."""
    half = len(window) // 2
    llama.reset()
    llama.prefill(window[:half], "none")
    return llama.prefill(window[half:-1], "all")


def bits_per_weight(container: Container) -> float:
    """Of the layers' matrices, as stored."""
    matrices = [container.matrix(layer, site) for layer in range(container.config.num_hidden_layers) for site in Site]
    return 8 * sum(matrix.nbytes for matrix in matrices) / sum(matrix.rows * matrix.cols for matrix in matrices)


def line(name: str, bits: float, megabytes: float | None, score: Scores) -> list[str]:
    """A row of the table."""
    row, (kl, error) = score.row(0.0), mean_and_error(score.kl)
    return [
        name, f"{bits:.2f}", "" if megabytes is None else f"{megabytes:.1f}",
        f"{row.perplexity:.2f} ± {row.perplexity_se:.2f}", f"{kl:.4f} ± {error:.4f}", f"{row.top1:.1%}",
    ]  # fmt: skip


def main() -> None:
    """Quantise, score, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name, Hugging Face directory or .gguf file")
    parser.add_argument("--text", required=True)
    parser.add_argument("--storage", action="append", default=[], metavar="SCHEME", help="as spqt quantize --scheme")
    parser.add_argument("--container", action="append", default=[], metavar="DIR", help="quantised already")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16)
    arguments = parser.parse_args()
    text, path = read_text(arguments.text), registry.resolve(arguments.model)
    checkpoint = open_checkpoint(path)
    source = FloatModel(checkpoint.config, {name: checkpoint.read(name) for name in checkpoint.names()})
    tokenizer = Tokenizer(checkpoint.tokenizer_json, checkpoint.config)
    parts = windows(tokenizer.encode(text), arguments.context, arguments.windows, tokenizer.bos)
    with tempfile.TemporaryDirectory(prefix="spqt-schemes-") as folder:
        containers = {
            storage: quantize(path, Path(folder) / str(i), scheme=storage)
            for i, storage in enumerate(arguments.storage)
        } | {Path(made).name: Container.open(made) for made in arguments.container}
        for container in containers.values():
            for transformation in container.transformations:
                check_disjoint(text, transformation, "the model was quantised with")
        models = [Llama(container, context=arguments.context) for container in containers.values()]
        scorers = [source.second_half, *(functools.partial(prefilled, model) for model in models)]
        scores = compare(parts, source.second_half, scorers)
    dense = [model.traffic.bytes_per_token(inputs_per_layer(model.config)) / 1e6 for model in models]
    rows = [line("source", 32.0, None, scores[0])] + [
        line(name, bits_per_weight(container), megabytes, score)
        for (name, container), megabytes, score in zip(containers.items(), dense, scores[1:], strict=True)
    ]
    print_table(
        Table(TITLES, rows),
        f"{scores[0].row(0.0).tokens} tokens of {Path(arguments.text).name} scored",
        provenance(None),
    )


if __name__ == "__main__":
    main()
