"""What each way to store a model costs: bytes read per token, perplexity and distance from the source.

    python bench/accuracy/schemes.py smollm2-135m --text evaluation.txt --storage q4_k --storage q6_k --storage q8_0
    python bench/accuracy/schemes.py smollm2-135m --text evaluation.txt --storage q4_k --container made-by-gptq
    python bench/accuracy/schemes.py smollm2-135m --text evaluation.txt --storage q3_k --rounds 7 --json widths.json
    python bench/accuracy/schemes.py smollm2-135m --text evaluation.txt --layout zigzag --layout row --storage q5_k

Quantised models go through the product's own runner (prefill, every token dense), the source through f32 NumPy
(evaluation/float_model.py). KL is from the source, ± its standard error over windows. Speeds are tokens/s of dense
decoding and of a prompt that fills the context, medians of --rounds rounds in which every model has its turn.
bench/accuracy/curve.py has sparsity as well.
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
from spqt_ti.formats.layout import LAYOUTS
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import Site, inputs_per_layer
from spqt_ti.sources import registry
from spqt_ti.sources.open import open_checkpoint
from spqt_ti.tables import Table, print_table
from spqt_ti.texts import check_disjoint, read_text

TITLES = [
    "stored", "bits per weight", "MB per token", "perplexity", "KL from the source", "same top 1",
    "prompt, tokens/s", "decode, tokens/s",
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


@dataclass(frozen=True)
class Speed:
    """Tokens per second, of a prompt and of dense decoding."""

    prompt: float
    decode: float


def speed_once(model: Llama, prompt: int, tokens: int) -> Speed:
    """Of one run: a prompt of `prompt` tokens, then `tokens` decoded after 16."""
    model.reset()
    start = time.perf_counter()
    model.prefill([1 + i % 1000 for i in range(prompt)], "last")
    prefilled = time.perf_counter() - start
    model.reset()
    token = int(model.prefill(range(16), "last")[-1].argmax())
    token = int(model.decode_greedy(token, 16)[-1])  # compiled, and warm
    start = time.perf_counter()
    for _ in range(tokens // 16):
        token = int(model.decode_greedy(token, 16)[-1])
    return Speed(prompt / prefilled, tokens // 16 * 16 / (time.perf_counter() - start))


def speeds_of(models: Sequence[Llama], rounds: int, prompt: int, tokens: int) -> list[Speed | None]:
    """Medians of interleaved rounds; None without rounds. A first round, which compiles, does not count."""
    if not rounds:
        return [None] * len(models)
    runs = [[speed_once(model, prompt, tokens) for model in models] for _ in range(rounds + 1)][1:]
    return [
        Speed(float(np.median([run.prompt for run in own])), float(np.median([run.decode for run in own])))
        for own in zip(*runs, strict=True)
    ]


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
    speed: Speed | None

    @classmethod
    def of(cls, stored: str, bits: float, read: float | None, score: Scores, speed: Speed | None) -> Cost:
        """From a model's scores."""
        row, (kl, error) = score.row(0.0), mean_and_error(score.kl)
        return cls(stored, bits, read, row.perplexity, row.perplexity_se, kl, error, row.top1, speed)

    def line(self) -> list[str]:
        """A row of the table."""
        speeds = ["", ""] if self.speed is None else [f"{self.speed.prompt:.0f}", f"{self.speed.decode:.0f}"]
        return [
            self.stored, f"{self.bits_per_weight:.2f}",
            "" if self.bytes_per_token is None else f"{self.bytes_per_token / 1e6:.1f}",
            f"{self.perplexity:.2f} ± {self.perplexity_se:.2f}", f"{self.kl:.4f} ± {self.kl_se:.4f}",
            f"{self.top1:.1%}", *speeds,
        ]  # fmt: skip


def main() -> None:
    """Quantise, score, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name, Hugging Face directory or .gguf file")
    parser.add_argument("--text", required=True)
    parser.add_argument("--storage", action="append", default=[], metavar="SCHEME", help="as spqt quantize --scheme")
    parser.add_argument(
        "--layout", action="append", choices=LAYOUTS, help="of --storage; may be repeated (default: zigzag)"
    )
    parser.add_argument("--container", action="append", default=[], metavar="DIR", help="quantised already")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--threads", type=int, help="default: all")
    parser.add_argument("--rounds", type=int, default=0, help="of speeds (default: none)")
    parser.add_argument("--tokens", type=int, default=64, help="decoded per round, a multiple of 16")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
    arguments = parser.parse_args()
    text, path = read_text(arguments.text), registry.resolve(arguments.model)
    checkpoint = open_checkpoint(path)
    source = FloatModel(checkpoint.config, {name: checkpoint.read(name) for name in checkpoint.names()})
    tokenizer = Tokenizer(checkpoint.tokenizer_json, checkpoint.config)
    parts = windows(tokenizer.encode(text), arguments.context, arguments.windows, tokenizer.bos)
    with tempfile.TemporaryDirectory(prefix="spqt-schemes-") as folder:
        stored = [(storage, layout) for layout in arguments.layout or LAYOUTS[:1] for storage in arguments.storage]
        containers = {
            f"{storage} {layout}": quantize(path, Path(folder) / str(i), layout, storage)
            for i, (storage, layout) in enumerate(stored)
        } | {Path(made).name: Container.open(made) for made in arguments.container}
        for container in containers.values():
            for transformation in container.transformations:
                check_disjoint(text, transformation, "the model was quantised with")
        models = [
            Llama(container, context=arguments.context, threads=arguments.threads) for container in containers.values()
        ]
        scorers = [source.second_half, *(functools.partial(prefilled, model) for model in models)]
        scores = compare(parts, source.second_half, scorers)
    speeds = speeds_of(models, arguments.rounds, arguments.context, arguments.tokens)
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
