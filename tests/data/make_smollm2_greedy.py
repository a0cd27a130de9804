"""Record what SmolLM2-135M-Instruct writes greedily.

    python tests/data/make_smollm2_greedy.py > tests/data/smollm2_greedy.json

Two worker threads, 64 new tokens, with the margin between the two highest logits at every step.
"""

import json

import numpy as np

import spqt_ti

PROMPT = "The ocean covers most of the planet, and"
LEVELS = (0.0, 0.4)


def record(model: spqt_ti.Model, tokens: int) -> dict[str, list]:
    """New token ids and the margins with which they were chosen."""
    llama, ids, margins = model.llama, [], []
    llama.reset()
    logits = llama.prefill(model.tokenizer.encode(PROMPT))[0]
    for _ in range(tokens):
        second, first = np.sort(logits)[-2:]
        ids.append(int(np.argmax(logits)))
        margins.append(round(float(first - second), 4))
        logits = llama.decode(ids[-1])
    return {"tokens": ids, "margins": margins, "text": model.tokenizer.decode(ids)}


def main() -> None:
    """Print the recording as JSON."""
    runs = {}
    model = spqt_ti.load("smollm2-135m", threads=2)
    calibration = model.calibrate()
    for level in LEVELS:
        model.apply(calibration.policy(level) if level else None)
        runs[str(level)] = record(model, 64)
    print(json.dumps({"prompt": PROMPT, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
