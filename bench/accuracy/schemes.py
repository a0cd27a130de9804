"""What each way to store a model costs: bytes read per token, perplexity and distance from the source.

    python bench/accuracy/schemes.py smollm2-135m --text evaluation.txt --storage q4_k --storage q6_k --storage q8_0
    python bench/accuracy/schemes.py smollm2-135m --text evaluation.txt --storage q4_k --container made-by-gptq
    python bench/accuracy/schemes.py smollm2-135m --text evaluation.txt --storage q3_k --rounds 7 --json widths.json

Quantised models go through the product's own runner (prefill, every token dense), the source through f32 NumPy
(evaluation/float_model.py). KL is from the source, ± its standard error over windows. Tokens/s are of dense decoding,
medians of --rounds rounds in which every model has its turn. bench/accuracy/curve.py has sparsity as well.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
    "stored", "bits per weight", "MB per token", "perplexity", "KL from the source", "same top 1", "tokens/s",
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


def decoded_per_second(models: Sequence[Llama], rounds: int, tokens: int) -> list[float | None]:
    """Tokens/s of dense decoding, medians of interleaved rounds; None without rounds."""
    speeds: list[list[float]] = [[] for _ in models]
    for _ in range(rounds):
        for model, speed in zip(models, speeds, strict=True):
            model.reset()
            token = int(model.prefill(range(16), "last")[-1].argmax())
            token = int(model.decode_greedy(token, 16)[-1])  # compiled, and warm
            start = time.perf_counter()
            for _ in range(tokens // 16):
                token = int(model.decode_greedy(token, 16)[-1])
            speed.append(tokens // 16 * 16 / (time.perf_counter() - start))
    return [float(np.median(speed)) if speed else None for speed in speeds]


@dataclass(frozen=True)
class Cost:
    """What a way to store a model costs. `bits_per_weight`: of the layers' matrices, as stored. `bytes_per_token`: as
    read, padding included; None of the source. `kl`: nats per token from the source; `_se` are standard errors.
    """

    stored: str
    bits_per_weight: float
    bytes_per_token: float | None
    perplexity: float
    perplexity_se: float
    kl: float
    kl_se: float
    top1: float
    tokens_per_second: float | None

    @classmethod
    def of(cls, stored: str, bits: float, read: float | None, score: Scores, speed: float | None) -> Cost:
        """From a model's scores."""
        row, (kl, error) = score.row(0.0), mean_and_error(score.kl)
        return cls(stored, bits, read, row.perplexity, row.perplexity_se, kl, error, row.top1, speed)

    def line(self) -> list[str]:
        """A row of the table."""
        return [
            self.stored, f"{self.bits_per_weight:.2f}",
            "" if self.bytes_per_token is None else f"{self.bytes_per_token / 1e6:.1f}",
            f"{self.perplexity:.2f} ± {self.perplexity_se:.2f}", f"{self.kl:.4f} ± {self.kl_se:.4f}",
            f"{self.top1:.1%}", "" if self.tokens_per_second is None else f"{self.tokens_per_second:.0f}",
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
    parser.add_argument("--threads", type=int, help="default: all")
    parser.add_argument("--rounds", type=int, default=0, help="of decoding, for tokens/s (default: none)")
    parser.add_argument("--tokens", type=int, default=64, help="decoded per round, a multiple of 16")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
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
        models = [
            Llama(container, context=arguments.context, threads=arguments.threads) for container in containers.values()
        ]
        scorers = [source.second_half, *(functools.partial(prefilled, model) for model in models)]
        scores = compare(parts, source.second_half, scorers)
    speeds = decoded_per_second(models, arguments.rounds, arguments.tokens)
    costs = [Cost.of("source", 32.0, None, scores[0], None)] + [
        Cost.of(
            name,
            bits_per_weight(container),
            model.traffic.bytes_per_token(inputs_per_layer(model.config)),
            score,
            speed,
        )
        for (name, container), model, score, speed in zip(containers.items(), models, scores[1:], speeds, strict=True)
    ]
    notes = (
        f"{scores[0].row(0.0).tokens} tokens of {Path(arguments.text).name} scored",
        provenance(arguments.threads),
    )
    print_table(Table(TITLES, [cost.line() for cost in costs]), *notes)
    if arguments.json is not None:
        found = {"model": arguments.model, "notes": notes, "costs": [asdict(cost) for cost in costs]}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
