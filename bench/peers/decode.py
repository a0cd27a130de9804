"""Decode speed beside llama.cpp: the same source model, threads and prompt, in interleaved rounds; and perplexity, so
that equal quality is seen.

    pip install '.[peers]'            # llama-cpp-python, compiled for this machine: CMAKE_ARGS=-DGGML_NATIVE=ON
    python bench/peers/decode.py smollm2-135m --threads 2 --text evaluation.txt

Each side lives in a process of its own, and only one of them computes at a time. llama.cpp runs the source GGUF as it
is and requantised by its own quantiser (`--types`), read into memory so that it repacks Q4_0 and Q4_K, its fastest.
With `--text` all of them are scored on the same windows, ours as if every token were decoded sparsely.
`--peer-python` names another interpreter that has llama-cpp-python.
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
from perplexity import peer_scores, perplexity
from processes import ask, peer_version, requantised, server, source_type

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


# Runs where llama-cpp-python is, which need not be where spqt_ti is.
_LLAMA_CPP = """
import sys, time
from llama_cpp import Llama
path, threads, tokens, prompt = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
options = dict(n_ctx=2048, n_batch=512, verbose=False, use_mmap=False)
model = Llama(path, n_threads=threads, n_threads_batch=threads, **options)
ids = model.tokenize(prompt.encode(), add_bos=False)
print("ready", flush=True)
for line in sys.stdin:
    model.reset()
    if line.startswith("prefill"):
        count = int(line.split()[1])
        begin = time.perf_counter()
        model.eval((ids * (count // len(ids) + 1))[:count])
        print(count / (time.perf_counter() - begin), flush=True)
        continue
    model.eval(ids)
    begin = time.perf_counter()
    for _ in range(tokens):
        model.eval([model.sample(temp=0.0)])
    print(tokens / (time.perf_counter() - begin), flush=True)
"""


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


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name or .gguf file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sparsity", default="0,0.25,0.4,0.5,0.65", help="default: %(default)s")
    parser.add_argument("--types", default="source,Q4_0,Q4_K_M", help="llama.cpp's types (default: %(default)s)")
    parser.add_argument("--prefill", type=int, default=512, metavar="N", help="tokens of a prompt; 0: no prompts")
    parser.add_argument("--text", help="UTF-8 text to score as well (see bench/accuracy/texts.py)")
    parser.add_argument("--context", type=int, default=512, help="window of the text (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=16, help="of the text (default: %(default)s)")
    parser.add_argument("--peer-python", default=sys.executable)
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
        levels = {level: Row("spqt_ti", _weights(float(level))) for level in arguments.sparsity.split(",")}
        paths, rows, peers = {}, {}, {}
        for scheme in arguments.types.split(","):
            paths[scheme] = requantised(arguments.peer_python, source, scheme, folder)
            name = f"{source_type(source)}, the source" if scheme == "source" else scheme
            rows[scheme] = Row("llama.cpp", name)
            command = [arguments.peer_python, "-c", _LLAMA_CPP, str(paths[scheme]), *sizes, PROMPT]
            peers[scheme] = stack.enter_context(server(command))
        for _ in range(arguments.rounds):
            for scheme, process in peers.items():
                rows[scheme].decode += ask(process, "decode")
            for level, row in levels.items():
                row.decode += ask(ours, f"decode {level}")
            if arguments.prefill:
                for scheme, process in peers.items():
                    rows[scheme].prefill += ask(process, f"prefill {arguments.prefill}")
                next(iter(levels.values())).prefill += ask(ours, f"prefill {arguments.prefill}")
        if arguments.text:
            score(arguments, paths, rows, levels, ours, folder)
    return [*rows.values(), *levels.values()]


def score(
    arguments: argparse.Namespace, paths: Mapping[str, Path], rows: Mapping[str, Row], levels: Mapping[str, Row],
    ours: Popen[str], folder: Path,
) -> None:  # fmt: skip
    """Fill in perplexities, on the same windows."""
    ids = folder / "ids.npy"
    for scheme, path in paths.items():
        tokens, nll = peer_scores(arguments, path, folder)
        rows[scheme].perplexity, rows[scheme].perplexity_se = perplexity(nll)
        np.save(ids, np.array(tokens))
    text = Path(arguments.text).resolve()
    question = ["score", ",".join(levels), text, arguments.context, arguments.windows, ids]
    numbers = ask(ours, "\t".join(map(str, question)))
    for row, found, error in zip(levels.values(), numbers[::2], numbers[1::2], strict=True):
        row.perplexity, row.perplexity_se = found, error


def _weights(level: float) -> str:
    return f"Q4_K zigzag, {level:.0%} sparse" if level else "Q4_K zigzag, dense"


def print_rows(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """Medians, spread (half of p80 - p20), and ratios to the fastest of llama.cpp's types."""
    from spqt_ti.benchmark.provenance import provenance
    from spqt_ti.tables import Table, print_table

    titles = ["program", "weights", "tokens/s", "over llama.cpp's best"]
    titles += [f"prompt of {arguments.prefill}, tokens/s", "over llama.cpp's best"] if arguments.prefill else []
    titles += ["perplexity"] if arguments.text else []
    tests = ["decode", "prefill"] if arguments.prefill else ["decode"]
    best = {
        test: max(float(np.median(getattr(row, test))) for row in rows if row.program == "llama.cpp") for test in tests
    }

    def cells(row: Row) -> list[str]:
        found = [row.program, row.weights]
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
    notes.append(provenance(arguments.threads, None, peer_version(arguments.peer_python)))
    print_table(Table(titles, [cells(row) for row in rows]), *notes)


def _speed(values: Sequence[float], best: float) -> list[str]:
    if not values:
        return ["", ""]
    low, high = np.quantile(values, [0.2, 0.8])
    median = float(np.median(values))
    return [f"{median:.1f} ± {(high - low) / 2:.1f}", f"{median / best:.2f}x"]


if __name__ == "__main__":
    main()
