"""What a rotation does to activation sparsity: the share of a site's output that is lost when half of its inputs go.

    python bench/accuracy/rotation.py smollm2-135m --text evaluation.txt --rotate residual --rotate residual,heads,down

Of each token the smaller half of the inputs is dropped; the loss is |W (x - x')|^2 over |W x|^2, both summed over the
tokens and then averaged over the layers. Weights are the source's, in f32: nothing is quantised. What rotations do to
quantisation is a matter of `spqt quantize --rotate` and schemes.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spqt_ti.benchmark.provenance import provenance
from spqt_ti.convert.quantize import open_source
from spqt_ti.convert.rotate import parse_components, rotated
from spqt_ti.convert.walk import Inputs, SourceWalk
from spqt_ti.evaluation.perplexity import windows
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.model.reference import PROJECTIONS
from spqt_ti.model.sites import Site
from spqt_ti.sources.checkpoint import Checkpoint
from spqt_ti.tables import GrowingTable, print_notes
from spqt_ti.texts import read_text


def without_smaller_half(x: np.ndarray) -> np.ndarray:
    """x f32 [tokens, cols] with zeros for the smaller half of each token's inputs."""
    magnitudes = np.abs(x)
    middle = np.median(magnitudes, axis=1, keepdims=True)
    return np.where(magnitudes > middle, x, 0)


def losses(checkpoint: Checkpoint, tokens: Sequence[Sequence[int]]) -> np.ndarray:
    """Share of the output energy that is lost, f64 [layers, 4]."""
    layers = checkpoint.config.num_hidden_layers
    lost, whole = np.zeros((layers, len(Site))), np.zeros((layers, len(Site)))
    walk = SourceWalk(checkpoint, tokens, "this")

    def of_site(layer: int, site: Site, x: np.ndarray) -> tuple[float, float]:
        """Energy that the site's outputs lose, and have."""
        parts = [checkpoint.read(f"model.layers.{layer}.{name}.weight") for name in PROJECTIONS[site.label]]
        w = np.concatenate(parts)
        energies = [np.square(y @ w.T, dtype=np.float64).sum() for y in (x - without_smaller_half(x), x)]
        return float(energies[0]), float(energies[1])

    for layer in range(layers):

        def measure(inputs: Inputs, layer: int = layer) -> np.ndarray:
            return np.array([of_site(layer, site, x) for site, x in inputs.items()])

        def add(found: np.ndarray, layer: int = layer) -> None:
            lost[layer] += found[:, 0]
            whole[layer] += found[:, 1]

        walk.run_layer(measure, add)
    return lost / whole


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name, Hugging Face directory or .gguf file")
    parser.add_argument("--text", required=True)
    parser.add_argument("--rotate", action="append", default=[], help="as spqt quantize --rotate; may be repeated")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=2)
    arguments = parser.parse_args()
    source = open_source(arguments.model)
    tokenizer = Tokenizer(source.tokenizer_json, source.config)
    ids = tokenizer.encode(read_text(arguments.text))
    parts = [list(part) for part in windows(ids, arguments.context, arguments.windows, tokenizer.bos)]
    with GrowingTable(["rotated", *(site.label for site in Site)]) as table:
        for chosen in ("", *arguments.rotate):
            checkpoint, _ = rotated(source, parse_components(chosen) if chosen else ())
            means = losses(checkpoint, parts).mean(axis=0)
            table.add([chosen or "nothing", *(f"{mean:.4f}" for mean in means)])
    print_notes(
        f"share of the output energy lost; {arguments.windows} windows of {arguments.context} of "
        f"{Path(arguments.text).name}, mean of the layers",
        provenance(None),
    )


if __name__ == "__main__":
    main()
