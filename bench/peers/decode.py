"""Decode speed beside llama.cpp and ik_llama.cpp: the same source model, threads and prompt, in interleaved rounds; and
perplexity, so that equal quality is seen.

    pip install '.[peers]'            # llama-cpp-python, compiled for this machine: CMAKE_ARGS=-DGGML_NATIVE=ON
    python bench/peers/decode.py smollm2-135m --threads 2 --text evaluation.txt

Each side lives in a process of its own, and only one of them computes at a time. The peers run the source GGUF as it is
and requantised by their own quantisers (`--types`, `--ik-types`), read into memory and repacked, their fastest.
With `--text` all of them are scored on the same windows, ours as if every token were decoded sparsely.
`--peer-python` and `--ik-python` name other interpreters that have llama-cpp-python and ik-llama-cpp-python
(docs/performance.md says how to build it). A row that cannot be measured says so; it is never left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # its neighbours, also when loaded from elsewhere
from perplexity import NOT_MEASURED, chosen, peer_scores, perplexity, reasons, versions
from processes import ask, requantised, server, source_type
from programs import IK_LLAMA_CPP, LLAMA_CPP, Peer

OURS = "spqt_ti"
PROMPT = "The history of the city begins with a small settlement on the bank of the river,"


def serve_spqt(model: str, threads: int, tokens: int) -> None:
    """Answer each line of stdin: "decode SPARSITY" and "prefill N" with tokens per second of one run, and
    "score SPARSITY,... TEXT CONTEXT WINDOWS IDS" with perplexity and its error for each sparsity.
    """
    from spqt_ti import load
    from spqt_ti.benchmark.decode import decode_once

    loaded = load(model, threads=threads)
    prompt = loaded.tokenizer.encode(PROMPT)
    calibration = loaded.calibrate()
    loaded.llama.warm_up_prefill()
    loaded.llama.warm_up_decode()
    print("ready", flush=True)
    for line in sys.stdin:
        test, *values = line.split("\t" if "\t" in line else None)
        if test == "prefill":
            count = int(values[0])
            loaded.llama.reset()
            begin = time.perf_counter()
            loaded.llama.prefill((prompt * (count // len(prompt) + 1))[:count])
            print(count / (time.perf_counter() - begin), flush=True)
            continue
        policies = [calibration.policy(float(s)) if float(s) else None for s in values[0].split(",")]
        if test == "score":
            print(*score_spqt(loaded, policies, *values[1:]), flush=True)
            continue
        loaded.apply(policies[0])
        print(decode_once(loaded, prompt, tokens)[0], flush=True)


def score_spqt(loaded, policies, text: str, context: str, most: str, ids: str) -> list[float]:
    """Perplexity and its error, of each policy, on the peer's windows: `ids` is the file of its token ids, which must
    be ours.
    """
    from spqt_ti.evaluation.perplexity import evaluate, windows
    from spqt_ti.texts import read_text

    tokens = loaded.tokenizer.encode(read_text(text))
    if tokens != np.load(ids.strip()).tolist():
        sys.exit("the two tokenizers disagree on this text, so there is nothing to compare")
    parts = windows(tokens, int(context), int(most), loaded.tokenizer.bos)
    scores = evaluate(loaded.llama, parts, policies)
    return [number for score in scores for number in perplexity(np.array(score.nll))]


@dataclass
class Row:
    """A program with its weights and level. Speeds in tokens per second, one per round; of prefill none where it is
    another row's.
    """

    program: str
    weights: str
    decode: list[float] = dataclasses.field(default_factory=list)
    prefill: list[float] = dataclasses.field(default_factory=list)
    perplexity: float | None = None
    perplexity_se: float | None = None
    missing: str = ""  # why it was not measured


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name or .gguf file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sparsity", default="0,0.25,0.4,0.5,0.65", help="default: %(default)s")
    parser.add_argument("--types", default=LLAMA_CPP.types, help="llama.cpp's types (default: %(default)s)")
    parser.add_argument("--ik-types", default=IK_LLAMA_CPP.types, help="ik_llama.cpp's types (default: %(default)s)")
    parser.add_argument("--prefill", type=int, default=512, metavar="N", help="tokens of a prompt; 0: no prompts")
    parser.add_argument("--text", help="UTF-8 text to score as well (see bench/accuracy/texts.py)")
    parser.add_argument("--context", type=int, default=512, help="window of the text (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=16, help="of the text (default: %(default)s)")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--ik-python", default=sys.executable, help="an interpreter that has ik-llama-cpp-python")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_spqt(arguments.model, arguments.threads, arguments.tokens)
        return
    rows = measure(arguments)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    else:
        print_rows(rows, arguments)


def measure(arguments: argparse.Namespace) -> list[Row]:
    """The rows of all types and levels."""
    from spqt_ti.sources import registry

    source = registry.resolve(arguments.model)
    sizes = [str(arguments.threads), str(arguments.tokens)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        own = [sys.executable, __file__, arguments.model, "--serve", "--threads", sizes[0], "--tokens", sizes[1]]
        ours = stack.enter_context(server(own))
        levels = {level: Row(OURS, _weights(float(level))) for level in arguments.sparsity.split(",")}
        paths, rows, peers = {}, {}, {}
        for key in chosen(arguments):
            peer, scheme = key
            name = f"{source_type(source)}, the source" if scheme == "source" else scheme
            rows[key] = Row(peer.name, name)
            try:
                paths[key] = requantised(peer, source, scheme, folder)
                command = [peer.python, "-c", peer.speed, str(paths[key]), *sizes, PROMPT]
                peers[key] = stack.enter_context(server(command))
            except SystemExit as error:
                if peer.name == LLAMA_CPP.name:
                    raise  # without it there is nothing to compare with
                rows[key].missing = str(error)

        def put(test: str, key: tuple[Peer, str], question: str) -> None:
            """A peer's answer to its row; one that ends while it computes is not asked again."""
            if not rows[key].missing:
                try:
                    getattr(rows[key], test).extend(ask(peers[key], question))
                except SystemExit as error:
                    rows[key].missing = f"{error}, perhaps because it cannot compute in this type"

        for _ in range(arguments.rounds):
            for key in peers:
                put("decode", key, "decode")
            for level, row in levels.items():
                row.decode += ask(ours, f"decode {level}")
            if arguments.prefill:
                for key in peers:
                    put("prefill", key, f"prefill {arguments.prefill}")
                next(iter(levels.values())).prefill += ask(ours, f"prefill {arguments.prefill}")
        if arguments.text:
            score(arguments, paths, rows, levels, ours, folder)
    return [*rows.values(), *levels.values()]


def score(
    arguments: argparse.Namespace, paths: Mapping[tuple[Peer, str], Path], rows: Mapping[tuple[Peer, str], Row],
    levels: Mapping[str, Row], ours: Popen[str], folder: Path,
) -> None:  # fmt: skip
    """Fill in perplexities, on the same windows."""
    ids = folder / "ids.npy"
    for key, path in paths.items():
        if rows[key].missing:
            continue
        found = peer_scores(key[0], arguments, path, folder)
        rows[key].perplexity, rows[key].perplexity_se = perplexity(found.nll)
        np.save(ids, np.array(found.ids))
    text = Path(arguments.text).resolve()
    question = ["score", ",".join(levels), text, arguments.context, arguments.windows, ids]
    numbers = ask(ours, "\t".join(map(str, question)))
    for row, found, error in zip(levels.values(), numbers[::2], numbers[1::2], strict=True):
        row.perplexity, row.perplexity_se = found, error


def _weights(level: float) -> str:
    return f"Q4_K zigzag, {level:.0%} sparse" if level else "Q4_K zigzag, dense"


def print_rows(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """Medians, spread (half of p80 - p20), and ratios to the fastest of the peers' types."""
    from spqt_ti.benchmark.provenance import provenance
    from spqt_ti.tables import Table, print_table

    titles = ["program", "weights", "tokens/s", "over the best peer"]
    titles += [f"prompt of {arguments.prefill}, tokens/s", "over the best peer"] if arguments.prefill else []
    titles += ["perplexity"] if arguments.text else []
    tests = ["decode", "prefill"] if arguments.prefill else ["decode"]
    best = {
        test: max(float(np.median(getattr(row, test))) for row in rows if row.program != OURS and not row.missing)
        for test in tests
    }

    def cells(row: Row) -> list[str]:
        found = [row.program, row.weights]
        if row.missing:
            return [*found, NOT_MEASURED, *[""] * (len(titles) - 3)]
        for test in tests:
            found += _speed(getattr(row, test), best[test])
        if arguments.text:
            found.append(f"{row.perplexity:.2f} ± {row.perplexity_se:.2f}")
        return found

    notes = [
        f"{arguments.model}: {arguments.tokens} greedy tokens, medians of {arguments.rounds} interleaved rounds ± "
        "(p80 - p20) / 2; prompts are always run densely"
    ]
    if arguments.text:
        notes.append(f"perplexity: {arguments.windows} windows of {arguments.context} of {Path(arguments.text).name}")
    notes += reasons({f"{row.program} {row.weights}": row.missing for row in rows if row.missing})
    notes.append(provenance(arguments.threads, None, *versions(arguments)))
    print_table(Table(titles, [cells(row) for row in rows]), *notes)


def _speed(values: Sequence[float], best: float) -> list[str]:
    if not values:
        return ["", ""]
    low, high = np.quantile(values, [0.2, 0.8])
    median = float(np.median(values))
    return [f"{median:.1f} ± {(high - low) / 2:.1f}", f"{median / best:.2f}x"]


if __name__ == "__main__":
    main()
