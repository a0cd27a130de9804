"""What CUDA would get: the PTX of every kernel of tokens and prompts, made without a GPU, assembled by NVIDIA's ptxas.

Taichi compiles for the GPU that libcuda.so describes; a stand-in for it (stand_in.c) describes one, writes down the PTX
that it is asked to load, and computes nothing. So this shows that the kernels compile, what their loads are, and that
they fit the GPU's registers and shared memory. It shows nothing about results.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import tiny_containers

from spqt_ti.container import Container
from spqt_ti.kernels.simt.groups import SHARED

HERE = Path(__file__).parent
TOKEN = {"begin_token", "run_layer", "end_token"}
PRODUCTS = ("project", "multiply_out", "multiply_gate_up", "multiply_down")  # of a prompt
KERNELS = TOKEN | {*PRODUCTS} | {"begin_chunk", "normalise_input", "attend_chunk", "normalise_middle", "end_chunk"}
REGISTERS, SHARED_MEMORY = 65536, 48 << 10  # of a group
ARCHITECTURES = ("sm_86", "sm_90")  # Taichi's PTX is for sm_86 at most, and drivers compile it for what is there

# A token alone and in a run, and a prompt; with every gate open, so that index lists are used.
CHILD = """\
import sys
from spqt_ti.container import Container
from spqt_ti.model.runner import Llama

llama = Llama(Container.open(sys.argv[1]), backend_name="cuda")
llama.thresholds[:] = 0.5
llama.prefill([1, 2, 3])
llama.decode_greedy(4, 2)
print(llama.device)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a process whose driver is the stand-in."""
    if not sys.platform.startswith("linux") or shutil.which("gcc") is None:
        pytest.skip("needs Linux and gcc")
    folder = tmp_path_factory.mktemp("cuda")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", HERE / "stand_in.c", "-o", folder / "libcuda.so"], check=True)
    return os.environ | {
        "LD_LIBRARY_PATH": str(folder), "PTX_FOLDER": str(folder), "SPQT_CACHE_DIR": str(folder / "cache"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def modules(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """PTX of every kernel that Taichi compiled for a Q4_K model, by the kernel's name."""
    return compiled(tiny_containers.container("gqa"), environment, tmp_path_factory.mktemp("ptx"))


@pytest.fixture(scope="module", params=["q4_k", "mixed"])
def any_modules(
    request: pytest.FixtureRequest, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The same, and that of a model with every other scheme, both layouts and a head without tiles."""
    if request.param == "q4_k":
        found: dict[str, str] = request.getfixturevalue("modules")
        return found
    source = tiny_containers.container("gqa").path.parent / "gqa-zigzag-f32-source"
    folder = tmp_path_factory.mktemp("mixed")
    container = tiny_containers.quantize(source, folder / "model", "zigzag,down=row", "q8_0,o=q6_k,head=q6_k")
    (folder / "ptx").mkdir()
    return compiled(container, environment, folder / "ptx")


def compiled(container: Container, environment: dict[str, str], ptx: Path) -> dict[str, str]:
    command = [sys.executable, "-c", CHILD, str(container.path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment | {"PTX_FOLDER": str(ptx)}, timeout=600, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["stand-in"], done.stderr
    texts = [path.read_text() for path in sorted(ptx.iterdir())]
    names = [re.search(r"\.entry (\w+?)_c\d+_\d+_kernel", text) for text in texts]
    return {name[1]: text for name, text in zip(names, texts, strict=True) if name}


def entries(ptx: str) -> dict[str, str]:
    """A module's tasks by name."""
    parts = re.split(r"^\.visible \.entry (\w+)\(", ptx, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_kernel_compiles(modules: dict[str, str]) -> None:
    assert modules.keys() >= KERNELS
    assert len(entries(modules["run_layer"])) == 10


WIDE = "ld.v4.u32"


def wide_loads(modules: dict[str, str], name: str) -> list[tuple[str, list[int]]]:
    """A kernel's tasks that read weights, with where in them."""
    bodies = [body for body in entries(modules[name]).values() if WIDE in body]
    return [(body, [found.start() for found in re.finditer(re.escape(WIDE), body)]) for body in bodies]


def test_weights_are_read_128_bits_at_a_time(any_modules: dict[str, str]) -> None:
    """Quants and headers of three columns of Q4_K, of two of others, before the loop and again in it, for its next
    turn. In row layout of one stretch of a row, in a prompt's kernel of one column.
    """
    loads = [[len(at) for _, at in wide_loads(any_modules, name)] for name in ("run_layer", *PRODUCTS)]
    # By site: Q4_K; then Q8_0, Q6_K, Q8_0 and rows of Q8_0.
    assert loads in ([[12, 12, 12, 12], [2], [2], [2], [2]], [[12, 14, 12, 3], [3], [4], [3], [3]])


def test_no_product_stands_between_the_loads_of_a_turn(modules: dict[str, str]) -> None:
    for body, at in wide_loads(modules, "run_layer"):
        assert "cvt" not in body[at[len(at) // 2] : at[-1]]


def test_shared_arrays_are_as_large_as_they_should_be(any_modules: dict[str, str]) -> None:
    """Tasks of one kernel may end up with the same array (see groups.py): then all must have the same size."""
    modules = any_modules
    for name in sorted(KERNELS):
        sizes = dict(re.findall(r"\.shared .* (shared_array\w*)\[(\d+)\]", modules[name]))
        tasks = [set(re.findall(r"shared_array\w*", body)) for body in entries(modules[name]).values()]
        sharing = [arrays for arrays in tasks if arrays]
        assert set().union(*sharing) == sizes.keys()
        assert len(sharing) < 2 or set(sizes.values()) == {str(4 * SHARED)}, (name, sizes)


def test_nothing_is_kept_in_local_memory(any_modules: dict[str, str]) -> None:
    """Vectors are registers: an index that is not a constant would put one into memory."""
    assert not [name for name in KERNELS if ".local" in any_modules[name]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvidias_assembler_takes_them(any_modules: dict[str, str], architecture: str, tmp_path: Path) -> None:
    modules = any_modules
    packaged = Path(sysconfig.get_path("purelib")) / "nvidia" / "cuda_nvcc" / "bin" / "ptxas"
    ptxas = shutil.which("ptxas") or (str(packaged) if packaged.exists() else None)
    if ptxas is None:
        pytest.skip("needs ptxas: pip install nvidia-cuda-nvcc-cu12")
    for name in sorted(KERNELS):
        source = tmp_path / f"{name}.ptx"
        source.write_text(modules[name])
        command = [ptxas, "-v", "-arch", architecture, source, "-o", tmp_path / "cubin"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert set(re.findall(r"(\d+) bytes spill", done.stderr)) == {"0"}, done.stderr
        threads = {task: int(n) for task, n in re.findall(r"\.entry (\w+)\([^{]*\.maxntid (\d+)", modules[name])}
        used = re.findall(r"entry function '(\w+)'.*?Used (\d+) registers(.*?)$", done.stderr, re.DOTALL | re.MULTILINE)
        assert len(used) == len(entries(modules[name]))
        for task, registers, rest in used:
            assert int(registers) * threads[task] <= REGISTERS, (task, registers)
            shared = re.search(r"(\d+) bytes smem", rest)
            assert shared is None or int(shared[1]) <= SHARED_MEMORY


def test_the_benchmark_reads_the_gpus_clock(environment: dict[str, str]) -> None:
    """By which, on the stand-in, a task takes a millisecond: two tasks are a product, three with its collection."""
    script = HERE.parents[1] / "bench" / "gpu.py"
    small = ["--shapes", "64x64", "--density", "0.5", "--rounds", "1", "--cold-megabytes", "1", "--copy-megabytes", "1"]
    command = [sys.executable, script, "--backend", "cuda", "--model", "", "--events", *small]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "device times: events" in done.stdout
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| 64 | 64 ")]
    times = {row[2]: float(row[4]) for row in rows}
    assert times == {"row": 1000, "zigzag": 2000, "b1": 1000, "b2": 2000, "full": 3000}
