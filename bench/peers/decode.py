"""Decode speed beside llama.cpp: the same source model, threads and prompt, in interleaved rounds.

    pip install '.[peers]'            # llama-cpp-python, compiled for this machine: CMAKE_ARGS=-DGGML_NATIVE=ON
    python bench/peers/decode.py smollm2-135m --threads 2 --sparsity 0,0.25,0.4,0.5

Each side lives in a process of its own, and only one of them computes at a time. llama.cpp runs the source GGUF as it
is and requantised by its own quantiser (`--types`), read into memory so that it repacks Q4_0 and Q4_K, its fastest.
`--peer-python` names another interpreter that has llama-cpp-python.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

PAUSE = 0.1  # s between runs: the other side's threads go on polling for a while after their work
PROMPT = "The history of the city begins with a small settlement on the bank of the river,"


def serve_spqt(model: str, threads: int, tokens: int) -> None:
    """Answer each line of stdin with the tokens per second of one run: of decoding at a sparsity, or of "prefill N"."""
    from spqt_ti import load
    from spqt_ti.benchmark.decode import decode_once

    loaded = load(model, threads=threads)
    prompt = loaded.tokenizer.encode(PROMPT)
    calibration = loaded.calibrate()
    loaded.llama.warm_up_prefill()
    loaded.llama.warm_up_decode()
    print("ready", flush=True)
    for line in sys.stdin:
        if line.startswith("prefill"):
            count = int(line.split()[1])
            loaded.llama.reset()
            begin = time.perf_counter()
            loaded.llama.prefill((prompt * (count // len(prompt) + 1))[:count])
            print(count / (time.perf_counter() - begin), flush=True)
            continue
        sparsity = float(line)
        loaded.apply(calibration.policy(sparsity) if sparsity else None)
        print(decode_once(loaded, prompt, tokens)[0], flush=True)


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

_REQUANTISE = """
import sys, ctypes, llama_cpp
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + sys.argv[3])
parameters.allow_requantize = True
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(parameters)))
"""


@contextmanager
def server(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that has said that it is ready."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            sys.exit(f"{command[0]} {command[1][:20]}... did not start")
        yield process
    finally:
        process.kill()
        process.wait()


def ask(process: subprocess.Popen[str], line: str) -> float:
    """Send a line, read a number."""
    assert process.stdin is not None
    assert process.stdout is not None
    time.sleep(PAUSE)
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def requantised(python: str, source: Path, scheme: str, folder: Path) -> Path:
    """`source` in another of llama.cpp's types ("source": as it is)."""
    if scheme == "source":
        return source
    target = folder / f"{scheme}.gguf"
    subprocess.run([python, "-c", _REQUANTISE, str(source), str(target), scheme], check=True, capture_output=True)
    return target


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name or .gguf file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sparsity", default="0,0.25,0.4,0.5")
    parser.add_argument("--types", default="source,Q4_K_M,Q4_0", help="llama.cpp's types")
    parser.add_argument("--prefill", type=int, default=0, metavar="N", help="compare prompts of N tokens as well")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_spqt(arguments.model, arguments.threads, arguments.tokens)
        return
    print_rows(measure(arguments), arguments.json)


def measure(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Name of the row -> tokens per second of every round."""
    from spqt_ti.sources import registry

    source = registry.resolve(arguments.model)
    levels, types = arguments.sparsity.split(","), arguments.types.split(",")
    sizes = [str(arguments.threads), str(arguments.tokens)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        own = [sys.executable, __file__, arguments.model, "--serve", "--threads", sizes[0], "--tokens", sizes[1]]
        ours = stack.enter_context(server(own))
        peers = {}
        for scheme in types:
            path = requantised(arguments.peer_python, source, scheme, folder)
            peers[scheme] = stack.enter_context(
                server([arguments.peer_python, "-c", _LLAMA_CPP, str(path), *sizes, PROMPT])
            )
        speeds: dict[str, list[float]] = {}
        for _ in range(arguments.rounds):
            for scheme, process in peers.items():
                speeds.setdefault(f"llama.cpp {scheme}", []).append(ask(process, "go"))
            for level in levels:
                speeds.setdefault(f"spqt_ti {float(level):.0%}", []).append(ask(ours, level))
            if arguments.prefill:
                test = f"prefill {arguments.prefill}"
                for scheme, process in peers.items():
                    speeds.setdefault(f"llama.cpp {scheme}, {test}", []).append(ask(process, test))
                speeds.setdefault(f"spqt_ti, {test}", []).append(ask(ours, test))
    return speeds


def print_rows(speeds: dict[str, list[float]], as_json: bool) -> None:
    """Medians, spread (half of p80 - p20) and ratios to llama.cpp's best type."""
    medians = {name: float(np.median(values)) for name, values in speeds.items()}
    peers = {name: value for name, value in medians.items() if name.startswith("llama.cpp")}
    best = {
        prefill: max((value for name, value in peers.items() if ("prefill" in name) == prefill), default=0.0)
        for prefill in (False, True)
    }
    if as_json:
        print(
            json.dumps([{"name": n, "tokens_per_second": m, "runs": speeds[n]} for n, m in medians.items()], indent=2)
        )
        return
    print("| | t/s | over llama.cpp's best |\n|---|---|---|")
    for name, median in medians.items():
        low, high = np.quantile(speeds[name], [0.2, 0.8])
        print(f"| {name} | {median:.1f} ± {(high - low) / 2:.1f} | {median / best['prefill' in name]:.2f}x |")


if __name__ == "__main__":
    main()
