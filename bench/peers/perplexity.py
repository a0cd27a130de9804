"""Perplexity beside llama.cpp's and ik_llama.cpp's: the same model, text, windows and scored tokens; differences are
paired by token.

    pip install '.[peers]'
    python bench/peers/perplexity.py smollm2-135m --text evaluation.txt --windows 32

Both run the source GGUF as it is and requantised by their own quantisers (`--types`, `--ik-types`). Ours: F16 and Q8_0
weights in f32 arithmetic (evaluation/float_model.py), and the runner, dense, in Q4_K.
`--peer-python` and `--ik-python` name other interpreters that have llama-cpp-python and ik-llama-cpp-python. A row that
cannot be measured says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # its neighbours, also when loaded from elsewhere
from processes import peer_version, requantised, run
from programs import IK_LLAMA_CPP, LLAMA_CPP, Peer

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class PeerScores:
    """A peer's token ids, and what it gives each scored token: negative log-likelihood and, where there was a
    reference, KL from it; f64 [windows, n].
    """

    ids: list[int]
    nll: np.ndarray
    kl: np.ndarray


def peer_scores(
    peer: Peer, arguments: argparse.Namespace, path: Path, folder: Path, reference: Path | None = None
) -> PeerScores:  # fmt: skip
    """Scores of a file; `reference`: a folder that `write_reference` has filled."""
    out = folder / "scores.npz"
    sizes = [str(n) for n in (arguments.context, arguments.windows, arguments.threads)]
    run([peer.python, "-c", peer.scores, str(path), arguments.text, *sizes, str(out), str(reference or "")])
    with np.load(out) as found:
        return PeerScores(found["ids"].tolist(), found["nll"], found["kl"])


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


def chosen(arguments: argparse.Namespace) -> list[tuple[Peer, str]]:
    """Programs and types that were asked for, llama.cpp's first."""
    llama, ik = LLAMA_CPP.of(arguments.peer_python), IK_LLAMA_CPP.of(arguments.ik_python)
    pairs = [(llama, scheme) for scheme in arguments.types.split(",")]
    return pairs + [(ik, scheme) for scheme in arguments.ik_types.split(",") if scheme]


def versions(arguments: argparse.Namespace) -> list[str]:
    """Of the programs that are there."""
    found = []
    for peer in dict.fromkeys(peer for peer, _ in chosen(arguments)):
        with contextlib.suppress(SystemExit):
            found.append(peer_version(peer))
    return found


def reasons(missing: dict[str, str]) -> list[str]:
    """A note for each reason why rows were not measured."""
    names: dict[str, list[str]] = {}
    for name, reason in missing.items():
        names.setdefault(reason.strip().splitlines()[-1], []).append(name)
    return [f"not measured, {', '.join(rows)}: {reason}" for reason, rows in names.items()]


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
    parser.add_argument("--ik-types", default=IK_LLAMA_CPP.types, help="ik_llama.cpp's types (default: %(default)s)")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--ik-python", default=sys.executable, help="an interpreter that has ik-llama-cpp-python")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    from spqt_ti.sources import registry

    source, scores, ids = registry.resolve(arguments.model), {}, []
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        for peer, scheme in chosen(arguments):
            try:
                path = requantised(peer, source, scheme, Path(name))
                found = peer_scores(peer, arguments, path, Path(name))
            except SystemExit as error:
                if not scores:
                    raise  # the first row is what all others are compared with
                missing[f"{peer.name} {scheme}"] = str(error)
                continue
            if ids and found.ids != ids:
                sys.exit(f"{peer.name} has other token ids for this text, so there is nothing to compare")
            ids, scores[f"{peer.name} {scheme}"] = found.ids, found.nll
    scores |= {f"spqt_ti {name}": nll for name, nll in own_scores(arguments, ids).items()}
    print_rows(scores, missing, arguments)


def print_rows(scores: dict[str, np.ndarray], missing: dict[str, str], arguments: argparse.Namespace) -> None:
    """Perplexities, and the mean difference in nats per token from the first row, with its paired standard error.
    `missing`: why a row has none.
    """
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
    cells += [[name, NOT_MEASURED, ""] for name in missing]
    print_table(
        Table(["model", "perplexity", f"nats per token over {rows[0][0]}"], cells),
        f"{rows[0][-1]} tokens of {Path(arguments.text).name} scored, windows of {arguments.context}",
        *reasons(missing),
        provenance(arguments.threads, None, *versions(arguments)),
    )


if __name__ == "__main__":
    main()
