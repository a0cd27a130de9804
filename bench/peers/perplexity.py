"""Perplexity beside llama.cpp's: the same model, text, windows and scored tokens; differences are paired by token.

    pip install '.[peers]'
    python bench/peers/perplexity.py smollm2-135m --text evaluation.txt --windows 32

llama.cpp runs the source GGUF as it is and requantised by its own quantiser (`--types`). Ours: F16 and Q8_0 weights in
f32 arithmetic (evaluation/float_model.py: the runner holds Q4_K only), and the runner, dense.
`--peer-python` names another interpreter that has llama-cpp-python.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # its neighbours, also when loaded from elsewhere
from processes import peer_version, requantised, run

# Runs where llama-cpp-python is. Writes the token ids, and the negative log-likelihoods f64 [windows, n].
_LLAMA_CPP = """
import sys
import numpy as np
import llama_cpp
path, text, context, most, threads, out = sys.argv[1:3] + [int(a) for a in sys.argv[3:6]] + sys.argv[6:]
model = llama_cpp.Llama(
    path, n_ctx=context, n_batch=context, n_threads=threads, n_threads_batch=threads, logits_all=True, verbose=False
)
ids = model.tokenize(open(text, "rb").read(), add_bos=True)
bos = [model.token_bos()] if ids[0] == model.token_bos() else []
nll = []
for start in range(0, len(ids) - context + 1, context)[:most]:
    window = bos + ids[start + len(bos) : start + context]
    model.reset()
    model.eval(window)
    logits = np.array(model.scores[context // 2 : context - 1], np.float64)
    wanted = logits[np.arange(len(logits)), window[context // 2 + 1 :]]
    top = logits.max(axis=1)
    nll.append(top + np.log(np.exp(logits - top[:, None]).sum(axis=1)) - wanted)
np.savez(out, ids=np.array(ids), nll=np.array(nll))
"""


def peer_scores(arguments: argparse.Namespace, path: Path, folder: Path) -> tuple[list[int], np.ndarray]:
    """llama.cpp's token ids and negative log-likelihoods f64 [windows, n]."""
    out = folder / "scores.npz"
    sizes = [str(n) for n in (arguments.context, arguments.windows, arguments.threads)]
    command = [arguments.peer_python, "-c", _LLAMA_CPP, str(path), arguments.text, *sizes, str(out)]
    run(command)
    with np.load(out) as found:
        return found["ids"].tolist(), found["nll"]


def own_scores(arguments: argparse.Namespace, peers_ids: Sequence[int]) -> dict[str, np.ndarray]:
    """Name -> our negative log-likelihoods f64 [windows, n]."""
    import spqt_ti
    from spqt_ti.evaluation.float_model import FloatModel
    from spqt_ti.evaluation.perplexity import compare, evaluate, windows
    from spqt_ti.formats import q8_0
    from spqt_ti.sources import registry
    from spqt_ti.sources.open import open_checkpoint
    from spqt_ti.texts import read_text

    model = spqt_ti.load(arguments.model, threads=arguments.threads, context=arguments.context)
    ids = model.tokenizer.encode(read_text(arguments.text))
    if ids != list(peers_ids):
        sys.exit("the two tokenizers disagree on this text, so there is nothing to compare")
    parts = windows(ids, arguments.context, arguments.windows, model.tokenizer.bos)
    (runner,) = evaluate(model.llama, parts, [None])
    checkpoint = open_checkpoint(registry.resolve(arguments.model))
    source = {name: checkpoint.read(name) for name in checkpoint.names()}

    def in_q8_0(w: np.ndarray) -> np.ndarray:
        return q8_0.dequantize(q8_0.quantize(w.reshape(-1, q8_0.VALUES))).reshape(w.shape)

    scorers = {}
    for name, rounded in {"F16": lambda w: w.astype(np.float16).astype(np.float32), "Q8_0": in_q8_0}.items():
        weights = {key: rounded(w) if w.ndim == 2 else w for key, w in source.items()}
        scorers[name] = FloatModel(checkpoint.config, weights).second_half
    scores = compare(parts, scorers["F16"], list(scorers.values()))
    found = {name: np.array(score.nll) for name, score in zip(scorers, scores, strict=True)}
    return found | {"Q4_K zigzag, the runner": np.array(runner.nll)}


def perplexity(nll: np.ndarray) -> tuple[float, float]:
    """Perplexity and its standard error over tokens."""
    value = float(np.exp(nll.mean()))
    return value, value * float(nll.std(ddof=1)) / nll.size**0.5


def main() -> None:
    """Score with both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name or .gguf file")
    parser.add_argument("--text", required=True)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--types", default="F16,Q8_0,source,Q4_K_M,Q4_0", help="llama.cpp's types, F16 first")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    from spqt_ti.sources import registry

    source, scores = registry.resolve(arguments.model), {}
    with tempfile.TemporaryDirectory() as name:
        for scheme in arguments.types.split(","):
            path = requantised(arguments.peer_python, source, scheme, Path(name))
            ids, scores[f"llama.cpp {scheme}"] = peer_scores(arguments, path, Path(name))
    scores |= {f"spqt_ti {name}": nll for name, nll in own_scores(arguments, ids).items()}
    print_rows(scores, arguments)


def print_rows(scores: dict[str, np.ndarray], arguments: argparse.Namespace) -> None:
    """Perplexities, and the mean difference in nats per token from the first row, with its paired standard error."""
    base, rows = next(iter(scores.values())), []
    for name, nll in scores.items():
        change = nll - base
        error = float(change.std(ddof=1)) / change.size**0.5
        rows.append((name, *perplexity(nll), float(change.mean()), error, nll.size))
    if arguments.json:
        keys = ("name", "perplexity", "perplexity_se", "nats_over_first", "nats_over_first_se", "tokens")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
        return
    from spqt_ti.benchmark.provenance import provenance
    from spqt_ti.tables import Table, print_table

    cells = [
        [name, f"{value:.3f} ± {error:.3f}", f"{change:+.5f} ± {change_error:.5f}"]
        for name, value, error, change, change_error, _ in rows
    ]
    print_table(
        Table(["model", "perplexity", f"nats per token over {rows[0][0]}"], cells),
        f"{rows[0][-1]} tokens of {Path(arguments.text).name} scored, windows of {arguments.context}",
        provenance(arguments.threads, None, peer_version(arguments.peer_python)),
    )


if __name__ == "__main__":
    main()
