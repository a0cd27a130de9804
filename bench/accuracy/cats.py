"""Neuron sparsity of a model with SiLU, by |silu(gate)|, exact and predicted, beside input sparsity, at equal bytes.

    python bench/accuracy/texts.py texts
    python bench/accuracy/cats.py smollm2-135m --text texts/calibration.txt --evaluation texts/evaluation.txt

* cats: all of gate is read, then up and down of the neurons above a layer's threshold (arXiv 2404.08763).
* svd: gate, up and down of the neurons that a low-rank predictor names (arXiv 2603.14110, whose bias search takes the
  importance of every neuron; SiLU has none at zero). The predictor is read as well, in Q8_0.
* uniform: input sparsity of all sites; uniform-ffn: of gate_up and down alone.

Everything is computed on the container's weights in NumPy. A level is the share of neurons or inputs that are skipped.
Bytes are those of the layers, attention included.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import spqt_ti
from spqt_ti.cli.options import levels
from spqt_ti.errors import SpqtError
from spqt_ti.evaluation.neurons import (
    InputMask,
    MagnitudeMask,
    NeuronMask,
    activated_gate,
    bytes_per_token,
    score_mask,
)
from spqt_ti.evaluation.perplexity import windows
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.predictors import NeuronPredictor
from spqt_ti.model.reference import LayerMask, Reference
from spqt_ti.model.sites import SITES, matrix_shapes
from spqt_ti.sparsity.predictors.layer import LayerFindings, examine, run
from spqt_ti.sparsity.predictors.settings import Bias, PredictorSettings
from spqt_ti.sparsity.search.sample import embeddings
from spqt_ti.sparsity.search.stored_layer import StoredLayer
from spqt_ti.tables import Table, print_table
from spqt_ti.texts import read_text

FFN = [SITES.index("gate_up"), SITES.index("down")]
Case = tuple[str, float, LayerMask, Callable[[], float]]  # method, level, mask, share of the layers' bytes read


class Sample:
    """What a text says of a model: quantiles of |input| per site and of |silu(gate)|, and predictors' findings."""

    def __init__(self, model: spqt_ti.Model, tokens: list[int], window: int, ranks: list[int], wanted: list[float]):
        container, self._wanted = model.container, wanted
        parts = [tokens[at : at + window] for at in range(0, len(tokens) // window * window, window)]
        x = embeddings(container, parts[: len(parts) // 2 * 2])
        layers = container.config.num_hidden_layers
        self.inputs = np.zeros((len(wanted), layers, len(SITES)), np.float32)
        self.gates = np.zeros((len(wanted), layers), np.float32)
        self.findings: dict[int, list[LayerFindings]] = {rank: [] for rank in ranks}
        for index in range(layers):
            layer = StoredLayer.load(container, index)
            trace = layer.run(x[::4], lambda _, inputs: inputs)
            for at, site in enumerate(SITES):
                self.inputs[:, index, at] = np.quantile(np.abs(trace.inputs[site]), wanted)
            self.gates[:, index] = np.quantile(activated_gate(layer, trace.inputs["gate_up"]), wanted)
            inputs = np.empty_like(x)
            x = run(layer, x, inputs)
            for rank in ranks:
                self.findings[rank].append(examine(layer, inputs, rank, PredictorSettings(rank)))

    def predictors(self, rank: int, level: float) -> dict[int, NeuronPredictor]:
        """That name all but a share `level` of the neurons of the text."""
        return {i: found.predictor(level, Bias.NEURON)[0] for i, found in enumerate(self.findings[rank])}


def share_of_ffn(config: ModelConfig) -> float:
    """Of the layers' weights."""
    shapes = matrix_shapes(config)
    sizes = {site: shapes[site].rows * shapes[site].cols for site in SITES}
    return (sizes["gate_up"] + sizes["down"]) / sum(sizes.values())


def bytes_of_inputs(config: ModelConfig, density: np.ndarray) -> float:
    """Share of the layers' bytes with these shares of active inputs [layers, 4]."""
    shapes = matrix_shapes(config)
    sizes = np.array([shapes[site].rows * shapes[site].cols for site in SITES], np.float64)
    return float((density * sizes).sum() / (sizes.sum() * len(density)))


def cases(config: ModelConfig, reference: Reference, sample: Sample, wanted: list[float]) -> Iterator[Case]:
    """Every method at every level."""
    ffn = share_of_ffn(config)
    for at, level in enumerate(wanted):
        inputs = sample.inputs[at]
        ffn_alone = np.zeros_like(inputs)
        ffn_alone[:, FFN] = inputs[:, FFN]
        for name, thresholds in (("uniform", inputs), ("uniform-ffn", ffn_alone)):
            mask = InputMask(thresholds)
            yield name, level, mask, lambda mask=mask: bytes_of_inputs(config, mask.density())  # type: ignore[misc]
        cats = MagnitudeMask(reference.layers, sample.gates[at])
        yield "cats", level, cats, lambda cats=cats: 1 - ffn * 2 / 3 * (1 - cats.density())  # type: ignore[misc]
        for rank in sample.findings:
            named = NeuronMask(reference.layers, sample.predictors(rank, level))

            def read(named: NeuronMask = named, rank: int = rank) -> float:
                density = float(np.mean([count.figures()["predicted_density"] for count in named.counts.values()]))
                return 1 - ffn + ffn * bytes_per_token(config, rank, density, density)

            yield f"svd, rank {rank}", level, named, read


def run_cases(arguments: argparse.Namespace) -> None:
    """What `main` has parsed."""
    model = spqt_ti.load(arguments.model, threads=arguments.threads)
    config = model.container.config
    tokens = model.tokenizer.encode(read_text(arguments.text))[: arguments.tokens]
    parts = windows(
        model.tokenizer.encode(read_text(arguments.evaluation)), arguments.context, arguments.windows,
        model.tokenizer.bos,
    )  # fmt: skip
    sample = Sample(model, tokens, arguments.context, arguments.ranks, arguments.sparsity)
    reference = Reference(config, dict(model.container.weights()))
    dense, logs = score_mask(reference, parts, None, None)
    lines = [("dense", "", "100.0%", "0", f"{dense.perplexity:.2f}")]
    for name, level, mask, read in cases(config, reference, sample, arguments.sparsity):
        found, _ = score_mask(reference, parts, logs, mask)
        lines.append((name, f"{level:.0%}", f"{read():.1%}", f"{np.mean(found.kl):.4f}", f"{found.perplexity:.2f}"))
        print(*lines[-1], file=sys.stderr)
    note = (
        f"{len(parts)} windows of {arguments.context} of {arguments.evaluation.name}, {len(tokens)} tokens to calibrate"
    )
    titles = ["method", "skipped", "layers' bytes read", "KL from dense", "perplexity"]
    print_table(Table(titles, lines), f"{arguments.model}: {note}")


def main() -> None:
    """Calibrate, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name, Hugging Face directory or quantised directory")
    parser.add_argument("--text", type=Path, required=True, help="to calibrate on")
    parser.add_argument("--tokens", type=int, default=8192, help="of it (default: %(default)s)")
    parser.add_argument("--evaluation", type=Path, required=True, help="text to evaluate on")
    parser.add_argument("--sparsity", type=levels, default=[0.2, 0.3, 0.4, 0.5])
    parser.add_argument("--ranks", type=lambda text: [int(rank) for rank in text.split(",")], default=[64, 128])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--threads", type=int)
    try:
        run_cases(parser.parse_args())
    except SpqtError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
