"""Q4_K GEMV beside ggml's, on weights from memory, in interleaved rounds.

    pip install '.[peers]'            # llama-cpp-python, compiled for this machine: CMAKE_ARGS=-DGGML_NATIVE=ON
    python bench/peers/gemv.py --threads 2 --shapes 14336x4096,4096x14336

ggml computes W x with its Q4_K weights as stored and repacked for the CPU (its fastest), as one graph over as many
copies as exceed the cache; its result is compared with the dequantised weights first. Each side lives in a process of
its own, and only one of them computes at a time; before each measured pass comes one that does not count.
`--peer-python` names another interpreter that has llama-cpp-python.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # its neighbour, also when loaded from elsewhere
from processes import ask, peer_version, server
from programs import LLAMA_CPP

COLD_BYTES = 512 << 20
Q4_K, F32 = 12, 0  # ggml_type
DENSITIES = (0.75, 0.6, 0.5)


class Ggml:
    """`copies` Q4_K matrices of the same bytes in ggml, and a graph that multiplies each with one vector."""

    def __init__(self, folder: str, data: np.ndarray, rows: int, cols: int, copies: int, threads: int, repack: bool):
        base = ctypes.CDLL(f"{folder}/libggml-base.so", ctypes.RTLD_GLOBAL)
        cpu = ctypes.CDLL(f"{folder}/libggml-cpu.so", ctypes.RTLD_GLOBAL)
        for library, names in (
            (base, "ggml_init ggml_new_tensor_1d ggml_new_tensor_2d ggml_mul_mat ggml_new_graph_custom "
             "ggml_backend_alloc_ctx_tensors_from_buft ggml_backend_get_default_buffer_type"),
            (cpu, "ggml_backend_cpu_init _Z35ggml_backend_cpu_repack_buffer_typev"),
        ):  # fmt: skip
            for name in names.split():
                getattr(library, name).restype = ctypes.c_void_p
        base.ggml_tensor_overhead.restype = base.ggml_graph_overhead_custom.restype = ctypes.c_size_t

        class Parameters(ctypes.Structure):
            _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))

        def context(size: int) -> ctypes.c_void_p:
            return ctypes.c_void_p(base.ggml_init(Parameters(size, None, True)))

        pointer, i64 = ctypes.c_void_p, ctypes.c_int64
        cpu.ggml_cpu_init()
        self._base, self._backend = base, pointer(cpu.ggml_backend_cpu_init())
        cpu.ggml_backend_cpu_set_n_threads(self._backend, threads)
        plain = pointer(base.ggml_backend_get_default_buffer_type(self._backend))
        wanted = pointer(cpu._Z35ggml_backend_cpu_repack_buffer_typev()) if repack else plain
        overhead = base.ggml_tensor_overhead()
        weights = context(overhead * (copies + 1))
        matrices = [pointer(base.ggml_new_tensor_2d(weights, Q4_K, i64(cols), i64(rows))) for _ in range(copies)]
        if not base.ggml_backend_alloc_ctx_tensors_from_buft(weights, wanted):
            sys.exit("ggml cannot allocate the weights")
        for matrix in matrices:
            base.ggml_backend_tensor_set(
                matrix, pointer(data.ctypes.data), ctypes.c_size_t(0), ctypes.c_size_t(data.size)
            )
        nodes = ctypes.c_size_t(copies + 8)
        vectors = context(overhead * (copies + 2) + base.ggml_graph_overhead_custom(nodes, False))
        self._x = pointer(base.ggml_new_tensor_1d(vectors, F32, i64(cols)))
        products = [pointer(base.ggml_mul_mat(vectors, matrix, self._x)) for matrix in matrices]
        self._graph = pointer(base.ggml_new_graph_custom(vectors, nodes, False))
        for product in products:
            base.ggml_build_forward_expand(self._graph, product)
        base.ggml_backend_alloc_ctx_tensors_from_buft(vectors, plain)
        self._last, self._rows, self._copies = products[-1], rows, copies

    def set_x(self, x: np.ndarray) -> None:
        pointer, size = ctypes.c_void_p(x.ctypes.data), ctypes.c_size_t(x.nbytes)
        self._base.ggml_backend_tensor_set(self._x, pointer, ctypes.c_size_t(0), size)

    def run(self) -> float:
        """Seconds per product of one pass over the copies."""
        begin = time.perf_counter()
        if self._base.ggml_backend_graph_compute(self._backend, self._graph):
            sys.exit("ggml's computation failed")
        return (time.perf_counter() - begin) / self._copies

    def y(self) -> np.ndarray:
        out = np.empty(self._rows, np.float32)
        pointer, size = ctypes.c_void_p(out.ctypes.data), ctypes.c_size_t(out.nbytes)
        self._base.ggml_backend_tensor_get(self._last, pointer, ctypes.c_size_t(0), size)
        return out


def serve_ggml(rows: int, cols: int, threads: int, repack: bool, data_path: str) -> None:
    """Answer each line of stdin with microseconds per product. Needs NumPy and llama-cpp-python only."""
    import llama_cpp

    folder = str(Path(llama_cpp.__file__).parent / "lib")
    stored = np.load(data_path)
    matrix = Ggml(folder, stored["data"], rows, cols, max(2, -(-COLD_BYTES // stored["data"].size)), threads, repack)
    matrix.set_x(stored["x"])
    matrix.run()
    error = np.abs(matrix.y() - stored["y"]).max() / np.abs(stored["y"]).max()
    if not error < 0.03:  # it rounds x to 8 bits
        sys.exit(f"ggml's product is off by {error:.1%}")
    print("ready", flush=True)
    for _ in sys.stdin:
        matrix.run()
        print(matrix.run() * 1e6, flush=True)


def serve_spqt(rows: int, cols: int, threads: int) -> None:
    """Answer each line of stdin (a density) with microseconds per product, index collection included."""
    from spqt_ti.benchmark import gemv_drivers

    gemv_drivers.COLD_BYTES = COLD_BYTES
    driver = gemv_drivers.Zigzag(rows, cols, threads)
    for density in (1.0, *DENSITIES):
        driver.run("zigzag" if density == 1 else "full", density)
    print("ready", flush=True)
    for line in sys.stdin:
        density = float(line)
        kernel = "zigzag" if density == 1 else "full"
        driver.run(kernel, density)
        begin = time.perf_counter()
        driver.run(kernel, density)
        print((time.perf_counter() - begin) / driver.turns * 1e6, flush=True)


def write_matrix(path: Path, rows: int, cols: int) -> None:
    """A random matrix in ggml's bytes, an input and the product, for the peer."""
    from spqt_ti.backend import start
    from spqt_ti.formats import q4_k
    from spqt_ti.formats.layout import dequantize_matrix
    from spqt_ti.kernels.pack.quantize import quantize_matrix

    start("cpu")
    rng = np.random.default_rng(0)
    data = quantize_matrix(rng.standard_normal((rows, cols), dtype=np.float32), "row", q4_k.SCHEME)
    x = rng.standard_normal(cols).astype(np.float32)
    np.savez(path, data=data, x=x, y=dequantize_matrix(data, rows, cols, "row", q4_k.SCHEME) @ x)


def measure(
    shape: tuple[int, int], threads: int, rounds: int, peer_python: str, folder: Path
) -> dict[str, list[float]]:
    """Name of the row -> microseconds of every round."""
    path = folder / f"{shape[0]}x{shape[1]}.npz"
    write_matrix(path, *shape)
    sizes = [str(shape[0]), str(shape[1]), str(threads)]
    with ExitStack() as stack:
        ours = stack.enter_context(server([sys.executable, __file__, "--serve", "spqt", *sizes]))
        peers = {
            kind: stack.enter_context(server([peer_python, __file__, "--serve", kind, *sizes, str(path)]))
            for kind in ("ggml", "ggml repacked")
        }
        times: dict[str, list[float]] = {}
        for _ in range(rounds):
            for kind, process in peers.items():
                times.setdefault(kind, []).extend(ask(process, "go"))
            for density in (1.0, *DENSITIES):
                times.setdefault(f"spqt_ti {density:.0%}", []).extend(ask(ours, str(density)))
    return times


def main() -> None:
    """Measure and print a Markdown table, or JSON."""
    if sys.argv[1:2] == ["--serve"]:
        kind, rows, cols, threads, *path = sys.argv[2:]
        if kind == "spqt":
            serve_spqt(int(rows), int(cols), int(threads))
        else:
            serve_ggml(int(rows), int(cols), int(threads), kind == "ggml repacked", path[0])
        return
    import tempfile

    from spqt_ti.benchmark.shapes import parse_shapes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="4096x4096,14336x4096,4096x14336,2048x2048,8192x2048,2048x8192")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for shape in parse_shapes(arguments.shapes):
            if shape[1] % 256:
                sys.exit(f"{shape[0]}x{shape[1]}: ggml's Q4_K needs multiples of 256 columns")
            times = measure(shape, arguments.threads, arguments.rounds, arguments.peer_python, Path(folder))
            best = min(float(np.median(times[kind])) for kind in ("ggml", "ggml repacked"))
            for name, values in times.items():
                median = float(np.median(values))
                results.append(
                    {"rows": shape[0], "cols": shape[1], "name": name, "microseconds": median, "runs": values,
                     "over_ggml": best / median}
                )  # fmt: skip
    if arguments.json:
        print(json.dumps(results, indent=1))
        return
    from spqt_ti.benchmark.provenance import provenance
    from spqt_ti.tables import Table, print_table

    cells = [
        [f"{r['rows']}x{r['cols']}", r["name"], f"{r['microseconds']:.0f}", f"{r['over_ggml']:.2f}x"] for r in results
    ]
    print_table(
        Table(["rows x cols", "kernel", "us per product", "over ggml's best"], cells),
        f"Q4_K, weights from memory, medians of {arguments.rounds} interleaved rounds",
        provenance(arguments.threads, None, peer_version(LLAMA_CPP.of(arguments.peer_python))),
    )


if __name__ == "__main__":
    main()
