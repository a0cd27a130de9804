"""Decoding with neuron predictors at the shapes of arXiv 2603.14110, beside dense decoding of the same model.

    python bench/neurons.py --model mistral-7b --layers 4 --rounds 7

The weights are random. A gate is of the predictor's rank, and its bias turns all but a tenth of the neurons off, so the
predictor is right. `--predicted` is the share of neurons that it lists: what exceeds a tenth are false positives.
Rounds are interleaved; speeds are medians, and the ratio is the median of the rounds' ratios. Then a token's phases.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import NormalDist

import numpy as np

from spqt_ti.backend import start
from spqt_ti.benchmark.provenance import provenance
from spqt_ti.container import MANIFEST, Container
from spqt_ti.convert.choices import parse_storage
from spqt_ti.convert.quantize import quantize_checkpoint
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.predictors import Executor, NeuronPredictor
from spqt_ti.model.runner import Llama
from spqt_ti.sources.checkpoint import Checkpoint, StoredTensor
from spqt_ti.tables import Table, print_table

ON = 0.1  # share of neurons whose gate is above zero
MODELS = {  # hidden, intermediate, KV heads, rank, layers
    "llama-2-7b": (4096, 11008, 32, 256, 32),
    "mistral-7b": (4096, 14336, 8, 352, 32),
    "tiny": (256, 1024, 2, 32, 2),
}


def config_of(name: str, layers: int | None) -> ModelConfig:
    """A Llama of these sizes with ReLU and biases, and a small vocabulary."""
    hidden, intermediate, kv_heads, _, all_layers = MODELS[name]
    head_dim = min(128, hidden // 4)
    return ModelConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers or all_layers,
        num_attention_heads=hidden // head_dim, num_key_value_heads=kv_heads, head_dim=head_dim, vocab_size=1024,
        max_position_embeddings=512, hidden_act="relu", mlp_bias=True, tie_word_embeddings=True,
    )  # fmt: skip


def predictor_of(config: ModelConfig, rank: int, layer: int, predicted: float) -> NeuronPredictor:
    """Factors of unit variance: of inputs of root mean square 1, as a norm makes them, guesses are standard normal."""
    rng = np.random.default_rng(layer)
    fc1 = rng.standard_normal((rank, config.hidden_size), np.float32) / np.float32(np.sqrt(config.hidden_size))
    fc2 = rng.standard_normal((config.intermediate_size, rank), np.float32) / np.float32(np.sqrt(rank))
    cut = NormalDist().inv_cdf(predicted)
    return NeuronPredictor(fc1, fc2, np.full(config.intermediate_size, cut, np.float32))


def weights_of(config: ModelConfig, rank: int, name: str) -> np.ndarray:
    """A tensor by its name, f32."""
    shape = config.tensor_shapes()[name]
    if "norm" in name:
        return np.ones(shape, np.float32)
    if name.endswith("gate_proj.weight"):
        gate = predictor_of(config, rank, int(name.split(".")[2]), ON)
        return gate.fc2 @ gate.fc1
    if name.endswith("gate_proj.bias"):
        return np.full(shape, NormalDist().inv_cdf(ON), np.float32)
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    rng = np.random.default_rng(sum(map(ord, name)))
    return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))


def container_of(config: ModelConfig, rank: int, folder: Path) -> Container:
    """The model, quantised into `folder` unless it is there already."""
    if (folder / "model" / MANIFEST).exists():
        return Container.open(folder / "model")
    source = folder / "source"
    source.mkdir(parents=True)
    (source / "model.safetensors").touch()  # what a container names as its origin
    tensors = {
        name: StoredTensor(shape, name, lambda name=name: weights_of(config, rank, name))  # type: ignore[misc]
        for name, shape in config.tensor_shapes().items()
    }
    checkpoint = Checkpoint(source, config, "{}", None, tensors)
    storage = parse_storage("q4_k", "zigzag,gate_up=row")
    return quantize_checkpoint(checkpoint, folder / "model", storage, "random", progress=False)


def seconds_per_token(llama: Llama, tokens: int) -> float:
    """Of one run of `tokens`, 16 or fewer per launch."""
    llama.reset()
    begin = time.perf_counter()
    for done in range(0, tokens, 16):
        llama.decode_greedy(done % 1000, min(16, tokens - done))
    return (time.perf_counter() - begin) / tokens


def measure(llama: Llama, predictors: dict[int, NeuronPredictor], arguments: argparse.Namespace) -> tuple[Table, Table]:
    """Speeds and bytes, then microseconds per phase."""
    cases = {"dense": None, **{executor.value: executor for executor in Executor}}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    read, rows, phases = {}, {}, {}
    for number in range(-1, arguments.rounds):
        for name, executor in cases.items():
            if executor is None:
                llama.set_predictors(None)
            else:
                llama.set_predictors(predictors, executor)
            if number < 0:  # compiles
                seconds_per_token(llama, 1)
                llama.profile(0)
                phases[name] = {phase: s / 16 * 1e6 for phase, s in llama.profile(0, 16).items()}
                read[name] = llama.traffic.bytes_per_token(llama.active / 16) / 1e6
                rows[name] = llama.neurons.mean(axis=0) / 16 / llama.config.intermediate_size
            else:
                seconds[name].append(seconds_per_token(llama, arguments.tokens))
    lines = []
    for name, times in seconds.items():
        ratio = np.median(np.array(seconds["dense"]) / np.array(times))
        shares = [f"{share:.1%}" for share in rows[name]] if cases[name] else ["", ""]
        lines.append([name, f"{np.median(times) * 1e3:.2f}", f"{ratio:.2f}x", f"{read[name]:.1f}", *shares])
    titles = ["executor", "ms per token", "over dense", "MB per token", "gate rows", "up rows"]
    names = list(dict.fromkeys(phase for found in phases.values() for phase in found))
    profile = [[phase, *(f"{phases[name].get(phase, 0):.0f}" for name in cases)] for phase in names]
    return Table(titles, lines), Table(["phase, us per token", *cases], profile)


def main() -> None:
    """Build, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="llama-2-7b")
    parser.add_argument("--layers", type=int, help="instead of the model's own")
    parser.add_argument("--rank", type=int, help="instead of the paper's")
    parser.add_argument("--predicted", type=float, default=ON, help="share of neurons listed (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="to keep the quantised model in, for another run of its sizes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=32, help="decoded per round and case")
    arguments = parser.parse_args()
    start("cpu", arguments.threads)
    config, rank = config_of(arguments.model, arguments.layers), arguments.rank or MODELS[arguments.model][3]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        llama = Llama(container_of(config, rank, folder), threads=arguments.threads)
        layers = range(config.num_hidden_layers)
        predictors = {layer: predictor_of(config, rank, layer, arguments.predicted) for layer in layers}
        speeds, profile = measure(llama, predictors, arguments)
    what = f"{arguments.model}, {len(layers)} layers, rank {rank}, medians of {arguments.rounds} interleaved rounds"
    print_table(speeds, what, provenance(arguments.threads))
    print_table(profile, "of worker 0, 16 tokens")


if __name__ == "__main__":
    main()
