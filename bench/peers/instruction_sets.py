"""The kernels as CPUs without AVX-512 run them, beside llama.cpp built for such a CPU: decoding, a prompt and GEMVs.

    export CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON"
    python -m venv ../avx2
    ../avx2/bin/pip install --no-cache-dir --no-binary llama-cpp-python llama-cpp-python
    python bench/peers/instruction_sets.py smollm2-135m --peer-python ../avx2/bin/python

Rows of ours are values of SPQT_NATIVE. `fma` and `avx2` are compiled for LLVM's `haswell` (see ../codegen_cpu.py), so
that no instruction of 512 bits is in any kernel, "1" for this CPU. Each row lives in a process of its own, and only one
of them computes at a time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # its neighbours
from decode import PROMPT
from gemv import write_matrix
from processes import ask, peer_version, requantised, server
from programs import LLAMA_CPP

HERE = Path(__file__).parent
CPUS = {"fma": "haswell", "avx2": "haswell", "1": ""}  # what a row's kernels are compiled for; "": this CPU
TITLES = {"fma": "spqt_ti, f32 (`fma`)", "avx2": "spqt_ti, 16 bits (`avx2`)", "1": "spqt_ti, 16 bits, this CPU"}
LEVELS = ("0", "0.5")

Times = dict[tuple[str, str], list[float]]  # by row and column


def ours(native: str, script: str, *arguments: str) -> list[str]:
    """The command of a neighbour's server with this SPQT_NATIVE."""
    for_cpu = [str(HERE.parent / "codegen_cpu.py"), CPUS[native]] if CPUS[native] else []
    return ["env", f"SPQT_NATIVE={native}", sys.executable, *for_cpu, str(HERE / script), *arguments]


def measure_model(arguments: argparse.Namespace, folder: Path) -> Times:
    """Tokens per second of decoding and of a prompt."""
    from spqt_ti.sources import registry

    source, times = registry.resolve(arguments.model), Times()
    sizes = [str(arguments.threads), str(arguments.tokens)]
    peer = LLAMA_CPP.of(arguments.peer_python)
    with ExitStack() as stack:
        peers = {}
        for scheme in arguments.types.split(","):
            path = requantised(peer, source, scheme, folder)
            peers[f"llama.cpp {scheme}"] = stack.enter_context(
                server([peer.python, "-c", peer.speed, str(path), *sizes, PROMPT])
            )
        serve = [arguments.model, "--serve", "--threads", sizes[0], "--tokens", sizes[1]]
        own = {native: stack.enter_context(server(ours(native, "decode.py", *serve))) for native in CPUS}
        for _ in range(arguments.rounds):
            for name, process in peers.items():
                times.setdefault((name, "dense"), []).extend(ask(process, "decode"))
                times.setdefault((name, "prompt"), []).extend(ask(process, f"prefill {arguments.prefill}"))
            for native, process in own.items():
                for level in LEVELS:
                    column = f"{float(level):.0%}" if float(level) else "dense"
                    times.setdefault((TITLES[native], column), []).extend(ask(process, f"decode {level}"))
                times.setdefault((TITLES[native], "prompt"), []).extend(ask(process, f"prefill {arguments.prefill}"))
    return times


def measure_gemv(shape: tuple[int, int], arguments: argparse.Namespace, folder: Path) -> Times:
    """Products per second of a matrix that comes from memory."""
    path, times = folder / "matrix.npz", Times()
    write_matrix(path, *shape)
    sizes = [str(shape[0]), str(shape[1]), str(arguments.threads)]
    with ExitStack() as stack:
        peers = {
            kind: stack.enter_context(
                server([arguments.peer_python, str(HERE / "gemv.py"), "--serve", kind, *sizes, str(path)])
            )
            for kind in ("ggml", "ggml repacked")
        }
        own = {
            native: stack.enter_context(server(ours(native, "gemv.py", "--serve", "spqt", *sizes))) for native in CPUS
        }
        for _ in range(arguments.rounds):
            for kind, process in peers.items():
                times.setdefault((kind, "dense"), []).extend(1e6 / t for t in ask(process, "go"))
            for native, process in own.items():
                for density, column in (("1", "dense"), ("0.5", "50%")):
                    times.setdefault((TITLES[native], column), []).extend(1e6 / t for t in ask(process, density))
    return times


def cells(times: Times, columns: list[str], digits: int) -> list[list[str]]:
    """Per row and column the median, its spread, and its ratio to the best peer: of decoding and products, the dense
    one.
    """
    names = list(dict.fromkeys(name for name, _ in times))
    medians = {key: float(np.median(values)) for key, values in times.items()}

    def cell(name: str, column: str) -> str:
        if (name, column) not in times:
            return ""
        compared = "prompt" if column == "prompt" else "dense"
        best = max(v for (n, c), v in medians.items() if c == compared and n not in TITLES.values())
        low, high = np.quantile(times[name, column], [0.2, 0.8])
        spread = f"{(high - low) / 2:.{digits}f}"
        return f"{medians[name, column]:.{digits}f} ± {spread} ({medians[name, column] / best:.2f}x)"

    return [[name, *(cell(name, column) for column in columns)] for name in names]


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="known name or .gguf file; empty: GEMVs alone")
    parser.add_argument("--peer-python", default=sys.executable, help="its llama-cpp-python is built for AVX2")
    parser.add_argument("--shapes", default="4096x4096,14336x4096", help="of GEMVs; empty: none")
    parser.add_argument("--types", default="Q4_0,Q4_K_M", help="llama.cpp's (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prefill", type=int, default=512, metavar="N", help="tokens of the prompt")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    from spqt_ti.benchmark.provenance import provenance
    from spqt_ti.benchmark.shapes import parse_shapes
    from spqt_ti.tables import Table, print_table

    note = provenance(arguments.threads, None, peer_version(LLAMA_CPP.of(arguments.peer_python)))
    rounds = f"medians of {arguments.rounds} interleaved rounds ± (p80 - p20) / 2; in brackets over llama.cpp's best"
    with tempfile.TemporaryDirectory() as folder:
        if arguments.model:
            times = measure_model(arguments, Path(folder))
            titles = ["", "decode, dense", "decode, 50 %", f"prompt of {arguments.prefill}"]
            table = Table(titles, cells(times, ["dense", "50%", "prompt"], 0))
            print_table(table, f"{arguments.model}, tokens/s, {rounds}", note)
        for shape in parse_shapes(arguments.shapes) if arguments.shapes else []:
            times = measure_gemv(shape, arguments, Path(folder))
            table = Table([f"GEMV {shape[0]}x{shape[1]}", "dense", "50 %"], cells(times, ["dense", "50%"], 0))
            print_table(table, f"products per second of Q4_K, weights from memory, {rounds}", note)


if __name__ == "__main__":
    main()
