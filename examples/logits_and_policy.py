"""How far sparsity moves the next-token distribution, and a policy changed by hand.

python examples/logits_and_policy.py [MODEL]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import spqt_ti

TEXT = """A river rises in the hills, runs through three towns and a lake, and ends in the sea. Every spring it floods
the meadows. The miller says that the water is his clock: when it is loud, he sleeps badly, when it is quiet, he reads.
"""


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of logits [T, vocab], in float64."""
    z = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def main(name: str = "smollm2-135m") -> None:
    model = spqt_ti.load(name)
    tokens = model.tokenizer.encode(TEXT)
    half = len(tokens) // 2
    dense = log_softmax(model.logits(tokens))[half:]  # [T, vocab] f32 by one prefill, which is never sparse

    def divergence(policy: spqt_ti.SparsityPolicy) -> float:
        """Mean KL(dense || sparse), in nats per token: the first half is the prompt, the second is decoded."""
        model.apply(policy)
        model.llama.reset()
        model.llama.prefill(tokens[:half], logits="none")
        sparse = log_softmax(np.stack([model.llama.decode(token).copy() for token in tokens[half:]]))
        return float((np.exp(dense) * (dense - sparse)).sum(axis=-1).mean())

    calibration = model.calibrate()  # quantiles of every site's inputs: one pass serves all levels
    for level in (0.25, 0.4, 0.5):
        print(f"{level:4.0%} at every site: KL {divergence(calibration.policy(level)):.3f}")

    # A policy is a threshold per layer and site: qkv, o, gate_up, down. 0 runs a site dense.
    thresholds = calibration.policy(0.5).thresholds.copy()
    thresholds[:, :3] = 0
    only_down = spqt_ti.SparsityPolicy("only-down", 0.5, thresholds, model.container.fingerprint)
    print(f" 50% before down only: KL {divergence(only_down):.3f}")

    # It is a JSON file that can be read, edited and shared: spqt generate ... --policy FILE takes it too.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "only-down.json"
        only_down.save(path)
        assert np.array_equal(spqt_ti.SparsityPolicy.load(path).thresholds, thresholds)


if __name__ == "__main__":
    main(*sys.argv[1:])
