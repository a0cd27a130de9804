"""SmolLM2 with SiLU replaced by ReLU: what is lost, and what a short distillation gives back.

    python -m bench.train.distil smollm2-135m texts FOLDER --steps 200

Needs the extra `train`; `texts` is the folder of bench/train/reglu.py, from whose training texts the windows are drawn.

1. Every SiLU becomes ReLU, or FATReLU with --threshold: x above it, 0 up to it.
2. Down is fitted layer by layer (ridge regression): to what the SiLU network gives for the same inputs.
3. Feed-forward networks and norms are trained: KL from the SiLU model's next-token distributions. --zeros adds the L1
   push of reglu.py on gate outputs. Attention and embeddings stay as they are.

After each of them: perplexity, KL from the SiLU model and zeros of gate outputs, on second halves of held-out windows.
FOLDER gets the model in Hugging Face's format and `training.json`. Ctrl-C ends the training early and exports.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from bench.train.reglu import Gates, half_precision, training_texts
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.sources.checkpoint import Checkpoint
from spqt_ti.sources.open import open_checkpoint
from spqt_ti.sources.registry import resolve
from spqt_ti.tables import Table, print_table

WINDOW, SEED = 256, 1
FIT_WINDOWS, DAMPING = 32, 1e-3  # of the ridge regression; damping is a share of the mean diagonal
WARM_UP, FALL = 10, 0.3  # of the learning rate: steps at the beginning, share of the steps at the end
FIRST_PENALTY, GROWTH = 1e-2, 1.03  # of the L1 push: at first, and per step


@dataclass
class Pair:
    """The SiLU model, the ReLU model that learns from it, and what watches the latter's gates."""

    teacher: LlamaForCausalLM
    student: LlamaForCausalLM
    gates: Gates

    @classmethod
    def of(cls, checkpoint: Checkpoint, threshold: float) -> Pair:
        """Both with the checkpoint's weights, f32; embeddings are shared."""
        config = AutoConfig.for_model(**checkpoint.config.to_dict())
        teacher = AutoModelForCausalLM.from_config(config).float().eval()
        state = {name: torch.from_numpy(checkpoint.read(name)) for name in checkpoint.names()}
        missing, unexpected = teacher.load_state_dict(state, strict=False)
        if unexpected or set(missing) - {"lm_head.weight"}:
            sys.exit(f"{checkpoint.source} is no model of transformers: {missing}, {unexpected}")
        student = copy.deepcopy(teacher, {id(p): p for p in teacher.model.embed_tokens.parameters()})
        for layer in student.model.layers:
            layer.mlp.act_fn = torch.nn.Threshold(threshold, 0.0)
        student.config.hidden_act = "fatrelu" if threshold else "relu"
        student.config.hidden_act_param = threshold
        return cls(teacher, student, Gates(student))

    @torch.no_grad()
    def fit_down(self, batch: torch.Tensor) -> None:
        """Down of every layer to the SiLU network's outputs, on tokens [windows, WINDOW] and the student's inputs."""
        states = self.student.model.embed_tokens(batch)
        angles = self.student.model.rotary_emb(states, torch.arange(batch.shape[1])[None])
        for layer, silu in zip(self.student.model.layers, self.teacher.model.layers, strict=True):
            mlp, inputs = layer.mlp, list[tuple[torch.Tensor, torch.Tensor]]()
            handle = layer.mlp.register_forward_hook(lambda _, args, output, to=inputs: to.append((args[0], output)))
            after = torch.cat([layer(part, position_embeddings=angles) for part in states.split(8)])
            handle.remove()
            x, before = (torch.cat([pair[at] for pair in inputs]).flatten(0, 1) for at in (0, 1))
            hidden, wanted = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x), silu.mlp(x)
            gram = (hidden.T @ hidden).double()
            gram.diagonal().add_(DAMPING * float(gram.diagonal().mean()))
            mlp.down_proj.weight.copy_(torch.linalg.solve(gram, (hidden.T @ wanted).double()).T.float())
            states = after + (mlp.down_proj(hidden) - before).view_as(after)

    @torch.no_grad()
    def measure(self, tokens: np.ndarray, windows: int = 16) -> dict[str, float]:
        """Perplexity of both, KL and the share of zeros over second halves of windows of held-out tokens."""
        parts = torch.from_numpy(tokens[: windows * (WINDOW + 1)].astype(np.int64)).view(-1, WINDOW + 1)
        half, found = WINDOW // 2, {"perplexity": 0.0, "of the SiLU model": 0.0, "KL": 0.0, "zeros": 0.0}
        for part in parts.split(4):
            weight, right = len(part) / len(parts), part[:, half + 1 :].flatten()
            theirs, ours = (
                net(part[:, :-1], use_cache=False).logits[:, half:].flatten(0, 1).log_softmax(-1)
                for net in (self.teacher, self.student)
            )
            found["perplexity"] += weight * float(cross_entropy(ours, right))
            found["of the SiLU model"] += weight * float(cross_entropy(theirs, right))
            found["KL"] += weight * float(kl_div(ours, theirs, reduction="batchmean", log_target=True))
            found["zeros"] += weight * float(np.mean(self.gates.last.zeros))
        return found | {name: math.exp(found[name]) for name in ("perplexity", "of the SiLU model")}


@dataclass
class Distillation:
    """Training of the student on windows of `tokens`."""

    pair: Pair
    tokens: np.ndarray
    steps: int
    rate: float
    batch: int
    zeros: float

    def run(self) -> int:
        """Steps done, fewer after Ctrl-C."""
        self.pair.student.requires_grad_(False)
        trained = [
            p.requires_grad_() for name, p in self.pair.student.named_parameters() if "mlp" in name or "norm" in name
        ]
        optimiser = torch.optim.AdamW(trained, lr=self.rate, betas=(0.9, 0.95), weight_decay=0.0)
        penalty, begun, mean = FIRST_PENALTY if self.zeros else 0.0, time.monotonic(), 0.0
        step = 0
        try:
            for step in range(self.steps):
                share = min((step + 1) / WARM_UP, (self.steps - step) / max(1, FALL * self.steps), 1.0)
                for group in optimiser.param_groups:
                    group["lr"] = self.rate * share
                loss = self._loss(drawn(self.tokens, step, self.batch))
                gates = self.pair.gates.last
                (loss + penalty * gates.size).backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimiser.step()
                optimiser.zero_grad()
                zeros = float(np.mean(gates.zeros))
                penalty *= GROWTH if zeros < self.zeros else 1 / GROWTH
                mean = loss.item() if not step else 0.9 * mean + 0.1 * loss.item()
                if step % 10 == 9:
                    speed = (step + 1) * self.batch * WINDOW / (time.monotonic() - begun)
                    print(f"{step + 1}/{self.steps}: KL {mean:.3f}, zeros {zeros:.3f}, penalty {penalty:.1e}, "
                          f"{speed:.0f} tokens/s", flush=True)  # fmt: skip
        except KeyboardInterrupt:
            return step
        return self.steps

    def _loss(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                theirs = self.pair.teacher(batch, use_cache=False).logits
            ours = self.pair.student(batch, use_cache=False).logits
        theirs, ours = (logits.float().flatten(0, 1).log_softmax(-1) for logits in (theirs, ours))
        return kl_div(ours, theirs, reduction="batchmean", log_target=True)


def drawn(tokens: np.ndarray, number: int, windows: int) -> torch.Tensor:
    """Windows [windows, WINDOW] of the text, chosen by the seed and a number."""
    first = np.random.default_rng([SEED, number]).integers(len(tokens) - WINDOW, size=windows)
    return torch.from_numpy(np.stack([tokens[at : at + WINDOW] for at in first]).astype(np.int64))


def main() -> None:
    """Replace, fit, distil, export; a table at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name, Hugging Face directory or .gguf file, with SiLU")
    parser.add_argument("texts", type=Path, help="folder of the texts, as bench/train/reglu.py fills it")
    parser.add_argument("folder", type=Path, help="for the model")
    parser.add_argument("--threshold", type=float, default=0.0, help="of FATReLU (default: ReLU)")
    parser.add_argument("--zeros", type=float, default=0.0, help="share aimed at by an L1 push (default: no push)")
    parser.add_argument("--steps", type=int, default=200, help="of distillation (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help=f"windows of {WINDOW} per step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=5e-4, help="of learning (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    checkpoint = open_checkpoint(resolve(arguments.model))
    tokenizer = Tokenizer(checkpoint.tokenizer_json, checkpoint.config)
    documents = training_texts(arguments.texts)
    tokens = np.array([i for document in documents for i in tokenizer.encode(document)], np.uint32)
    held = {
        name: np.array(tokenizer.encode((arguments.texts / name).read_text(encoding="utf-8")), np.uint32)
        for name in ("speeches.txt", "evaluation.txt")
    }
    pair = Pair.of(checkpoint, arguments.threshold)
    lines, report = [], []

    def measured(what: str) -> None:
        for name, text in held.items():
            found = pair.measure(text)
            report.append({"what": what, "text": name, **found})
            figures = [f"{found['perplexity']:.2f}", f"{found['of the SiLU model']:.2f}", f"{found['KL']:.3f}"]
            lines.append([what, name, *figures, f"{found['zeros']:.1%}"])
            print(*lines[-1], flush=True)

    measured("replaced")
    pair.fit_down(drawn(tokens, arguments.steps, FIT_WINDOWS))
    measured("down fitted")
    if arguments.steps:
        distillation = Distillation(
            pair, tokens, arguments.steps, arguments.rate, arguments.batch, arguments.zeros
        )  # fmt: skip
        done = distillation.run()
        measured(f"{done} steps")
    with half_precision(pair.student):
        pair.student.half().save_pretrained(arguments.folder)
    (arguments.folder / "tokenizer.json").write_text(checkpoint.tokenizer_json, encoding="utf-8")
    settings = {name: str(value) for name, value in vars(arguments).items()}
    (arguments.folder / "training.json").write_text(
        json.dumps({"settings": settings, "found": report}, indent=1) + "\n"
    )
    titles = ["", "text", "perplexity", "with SiLU", "KL", "zeros"]
    print_table(Table(titles, lines), f"{arguments.model}, second halves of 16 windows of {WINDOW}")


if __name__ == "__main__":
    main()
