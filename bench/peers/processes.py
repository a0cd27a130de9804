"""The other side of a comparison: llama.cpp in processes of its own, asked line by line, and its quantiser."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PAUSE = 0.1  # s before a question: the other side's threads go on polling for a while after their work

_REQUANTISE = """
import sys, ctypes, llama_cpp
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + sys.argv[3])
parameters.allow_requantize = True
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(parameters)))
"""


@contextmanager
def server(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that has said that it is ready. One that cannot start ends this one, with what it had to say."""
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                process.wait()
                stderr.seek(0)
                sys.exit(f"{command[0]} {command[1][:40]}... did not start:\n{last_lines(stderr.read())}")
            yield process
        finally:
            process.kill()
            process.wait()


def last_lines(text: str, count: int = 12) -> str:
    """The end of what a process said; of a missing llama-cpp-python, what to do."""
    if "No module named 'llama_cpp'" in text:
        return "llama-cpp-python is not there: pip install 'spqt-ti[peers]', or name another --peer-python"
    return "\n".join(text.strip().splitlines()[-count:]) or "(it said nothing)"


def ask(process: subprocess.Popen[str], line: str) -> list[float]:
    """Send a line, read the numbers of the answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    time.sleep(PAUSE)
    answer = ""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    if not answer.strip():
        sys.exit(f"no answer to {line!r}: the other process has ended")
    return [float(number) for number in answer.split()]


def run(command: Sequence[str]) -> str:
    """stdout of a process that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} {command[1][:40]}... ended with code {done.returncode}:\n{last_lines(done.stderr)}")
    return done.stdout


def peer_version(python: str) -> str:
    """Such as "llama-cpp-python 0.3.16"."""
    return f"llama-cpp-python {run([python, '-c', 'import llama_cpp; print(llama_cpp.__version__)']).strip()}"


def requantised(python: str, source: Path, scheme: str, folder: Path) -> Path:
    """`source` in another of llama.cpp's types ("source": as it is)."""
    if scheme == "source":
        return source
    target = folder / f"{scheme}.gguf"
    if not target.exists():
        run([python, "-c", _REQUANTISE, str(source), str(target), scheme])
    return target


def source_type(path: Path) -> str:
    """What a GGUF file says of its type, such as Q4_1; "source" where it does not."""
    import gguf

    field = gguf.GGUFReader(path).fields.get("general.file_type")
    try:
        return gguf.LlamaFileType(int(field.contents())).name.removeprefix("MOSTLY_") if field else "source"
    except ValueError:
        return "source"
