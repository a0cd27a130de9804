"""Decode speed at several sparsities, in interleaved rounds so that a slow moment of the machine hits all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spqt_ti.api import Model, load
from spqt_ti.benchmark.bandwidth import read_bandwidth
from spqt_ti.generation.loop import tokens_of_launch
from spqt_ti.model.sites import SITES, inputs_skipped, realised_sparsity
from spqt_ti.progress import progress
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.tables import Table

PROMPT = "The history of the city begins with a small settlement on the bank of the river,"


@dataclass(frozen=True)
class DecodeRow:
    """One line of the table. Speeds are medians over rounds; `spread` is (p80 - p20) / 2 of tokens per second.

    `realised_sparsity`: share of the layers' weights that were skipped; `inputs_skipped`: site -> share of its inputs.
    """

    model: str
    backend: str
    threads: int
    method: str  # the policy's, or "dense"
    sparsity: float
    realised_sparsity: float
    inputs_skipped: dict[str, float]
    prompt_tokens: int
    tokens: int
    rounds: int
    tokens_per_second: float
    spread: float
    bytes_per_token: float
    bandwidth_fraction: float
    speedup: float


def measure_decode(
    name: str,
    sparsities: Sequence[float],
    threads: int | None = None,
    tokens: int = 128,
    rounds: int = 5,
    policies: Sequence[SparsityPolicy] = (),
) -> list[DecodeRow]:
    """Decode `tokens` greedy tokens after a short prompt, `rounds` times per uniform sparsity and per policy.

    `speedup` is over the first of them; `bandwidth_fraction` is (bytes of weights read per second) / (read bandwidth
    measured in the same run with the same threads).
    """
    model = load(name, threads=threads)
    cases = [model.calibrate().policy(s) if s else None for s in sparsities] + list(policies)
    prompt = model.tokenizer.encode(PROMPT)
    speeds: list[list[float]] = [[] for _ in cases]
    active = [np.zeros(0) for _ in cases]
    model.llama.warm_up_prefill()
    model.llama.warm_up_decode()
    with progress(total=rounds * len(cases), desc="decode", unit="runs") as bar:
        for _ in range(rounds):
            for i, policy in enumerate(cases):
                model.apply(policy)
                speed, active[i] = decode_once(model, prompt, tokens)
                speeds[i].append(speed)
                bar.update()
    ceiling = read_bandwidth(model.llama.threads)
    base = float(np.median(speeds[0]))
    rows = []
    for i, policy in enumerate(cases):
        median = float(np.median(speeds[i]))
        low, high = np.quantile(speeds[i], [0.2, 0.8])
        read = model.llama.traffic.bytes_per_token(active[i])
        rows.append(
            DecodeRow(
                model=str(name),
                backend=model.llama.backend,
                threads=model.llama.threads,
                method=policy.method if policy else "dense",
                sparsity=policy.sparsity if policy else 0.0,
                realised_sparsity=realised_sparsity(model.container.config, active[i]),
                inputs_skipped=dict(
                    zip(SITES, inputs_skipped(model.container.config, active[i]).tolist(), strict=True)
                ),
                prompt_tokens=len(prompt),
                tokens=tokens,
                rounds=rounds,
                tokens_per_second=median,
                spread=float(high - low) / 2,
                bytes_per_token=read,
                bandwidth_fraction=read * median / ceiling,
                speedup=median / base,
            )
        )
    return rows


def decode_once(model: Model, prompt: Sequence[int], tokens: int) -> tuple[float, np.ndarray]:
    """Tokens per second of one run, and the active inputs [layers, 4] of an average token."""
    llama = model.llama
    llama.reset()
    token = int(np.argmax(llama.prefill(prompt)[0]))
    active = np.zeros(llama.active.shape)
    begin = time.perf_counter()
    done, at_once = 0, 1
    while done < tokens:
        count = min(at_once, tokens - done)
        token = llama.decode_greedy(token, count)[-1]
        active += llama.active
        done += count
        at_once = tokens_of_launch((time.perf_counter() - begin) / done)
    return tokens / (time.perf_counter() - begin), active / tokens


@dataclass(frozen=True)
class ProfileRow:
    """Where the time of a token goes at one sparsity: seconds per token of each phase; they add up to `seconds`.

    `overhead`: share of the token that is neither GEMV nor head.
    """

    model: str
    threads: int
    sparsity: float
    position: int
    seconds: float
    phases: dict[str, float]
    overhead: float


def profile_decode(
    name: str, sparsities: Sequence[float], threads: int | None = None, tokens: int = 128, context: int = 0
) -> list[ProfileRow]:
    """Profile `tokens` greedy tokens after a prompt of `context` tokens (0: a short one).

    A phase is worker 0's mean time; what passes outside the kernel is "launch and Python", with as many tokens per
    launch as `generate` takes. Raises GenerationError for a context that the model does not have, BackendError where
    kernels cannot read a clock.
    """
    model = load(name, threads=threads)
    policies = {s: model.calibrate().policy(s) if s else None for s in sparsities}
    prompt = model.tokenizer.encode(PROMPT)
    if context:
        prompt = (prompt * (context // len(prompt) + 1))[:context]
    llama, rows = model.llama, []
    for s in sparsities:
        model.apply(policies[s])
        llama.reset()
        token = int(np.argmax(llama.prefill(prompt)[0]))
        llama.profile(token)  # compiles
        at_once = tokens_of_launch(sum(llama.profile(llama.best_token()).values()))
        phases: dict[str, float] = {}
        begin = time.perf_counter()
        for done in range(0, tokens, at_once):
            for phase, seconds in llama.profile(llama.best_token(), min(at_once, tokens - done)).items():
                phases[phase] = phases.get(phase, 0.0) + seconds / tokens
        total = (time.perf_counter() - begin) / tokens
        phases["launch and Python"] = total - sum(phases.values())
        needed = sum(seconds for phase, seconds in phases.items() if phase.startswith(("gemv", "head")))
        rows.append(ProfileRow(str(name), llama.threads, s, len(prompt), total, phases, 1 - needed / total))
    return rows


def profile_table(rows: Sequence[ProfileRow]) -> Table:
    """The rows side by side, microseconds per token."""
    lines = [
        [phase, *(f"{r.phases[phase] * 1e6:.1f} ({r.phases[phase] / r.seconds:.1%})" for r in rows)]
        for phase in rows[0].phases
    ]
    lines.append(["token", *(f"{r.seconds * 1e6:.1f}" for r in rows)])
    lines.append(["neither GEMV nor head", *(f"{r.overhead:.1%}" for r in rows)])
    return Table(["phase, us per token", *(f"{r.sparsity:.0%} sparse" for r in rows)], lines)


def table(rows: Sequence[DecodeRow]) -> Table:
    """The rows as a table; speed-ups are over the first."""
    base = rows[0].method if rows[0].method == "dense" else "the first row"
    titles = ["policy", "level", "weights skipped", "tokens/s", f"over {base}", "MB per token", "of read bandwidth"]

    def cells(r: DecodeRow) -> list[str]:
        speed = f"{r.tokens_per_second:.1f} ± {r.spread:.1f}"
        shares = [f"{r.sparsity:.0%}", f"{r.realised_sparsity:.0%}"]
        traffic = [f"{r.bytes_per_token / 1e6:.1f}", f"{r.bandwidth_fraction:.0%}"]
        return [r.method, *shares, speed, f"{r.speedup:.2f}x", *traffic]

    return Table(titles, [cells(r) for r in rows])


def describe(rows: Sequence[DecodeRow]) -> str:
    """What the table is of."""
    r = rows[0]
    return (
        f"{r.model}: {r.tokens} greedy tokens after {r.prompt_tokens}, medians of {r.rounds} interleaved rounds ± "
        "(p80 - p20) / 2; skipped: of the layers' weights; MB: with the head, which is read whole"
    )
