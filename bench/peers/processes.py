"""The other side of a comparison: programs in processes of their own, asked line by line, and their quantisers."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from programs import IK_LLAMA_CPP, LLAMA_CPP, Peer

PAUSE = 0.1  # s before a question: the other side's threads go on polling for a while after their work


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
    """The end of what a process said; of a missing program, what to do."""
    for peer in (IK_LLAMA_CPP, LLAMA_CPP):
        if f"No module named '{peer.module}'" in text:
            return f"{peer.package} is not there: {peer.install}, or name another interpreter that has it"
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


def peer_version(peer: Peer) -> str:
    """Such as "llama-cpp-python 0.3.16"."""
    return f"{peer.package} {run([peer.python, '-c', f'import {peer.module} as m; print(m.__version__)']).strip()}"


def requantised(peer: Peer, source: Path, scheme: str, folder: Path) -> Path:
    """`source` in another of a peer's types, by its own quantiser ("source": as it is)."""
    if scheme == "source":
        return source
    target = folder / f"{peer.module}-{scheme}.gguf"
    if not target.exists():
        run([peer.python, "-c", peer.requantise, str(source), str(target), scheme])
    return target


def source_type(path: Path) -> str:
    """What a GGUF file says of its type, such as Q4_1; "source" where it does not."""
    import gguf

    field = gguf.GGUFReader(path).fields.get("general.file_type")
    try:
        return gguf.LlamaFileType(int(field.contents())).name.removeprefix("MOSTLY_") if field else "source"
    except ValueError:
        return "source"
