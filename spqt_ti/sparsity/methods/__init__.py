"""The calibration methods by name: each turns a text into a function from a sparsity to a policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spqt_ti.cache import cache_dir
from spqt_ti.container import Container
from spqt_ti.errors import PolicyError
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.model.runner import Llama
from spqt_ti.sparsity.checkpoint import Checkpoint, Identity
from spqt_ti.sparsity.methods import svd, teal, uniform, wina, wisparse
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.sparsity.predictors.settings import PredictorSettings
from spqt_ti.sparsity.search.evolution import Search
from spqt_ti.sparsity.search.swept import Elsewhere
from spqt_ti.texts import paragraph_hashes

MIN_TOKENS = 256  # below that a quantile of a site says little

PolicyMaker = Callable[[float], SparsityPolicy]


@dataclass(frozen=True)
class Request:
    """What a method calibrates: the model, the text with its tokens, where it keeps what it has, how it searches."""

    llama: Llama
    container: Container
    text: str
    tokens: Sequence[int]
    checkpoint: Checkpoint
    search: Search
    predictor: PredictorSettings
    elsewhere: Elsewhere | None = None


def _uniform(r: Request) -> PolicyMaker:
    return uniform.calibrate(r.llama, r.container.fingerprint, r.text, r.tokens, r.checkpoint, r.elsewhere).policy


def _wina(r: Request) -> PolicyMaker:
    return wina.calibrate(r.llama, r.container, r.text, r.tokens, r.checkpoint, r.elsewhere).policy


def _teal(r: Request) -> PolicyMaker:
    return teal.calibrate(r.llama, r.container, r.text, r.tokens, r.checkpoint, r.search, r.elsewhere).policy


def _wisparse(r: Request) -> PolicyMaker:
    return wisparse.calibrate(r.llama, r.container, r.text, r.tokens, r.search, r.checkpoint, r.elsewhere).policy


def _svd(r: Request) -> PolicyMaker:
    made = svd.calibrate(r.container, r.text, r.tokens, r.predictor, r.checkpoint, r.llama.threads)
    level = r.predictor.attention
    if not level:
        return made.policy
    inputs = uniform.calibrate(r.llama, r.container.fingerprint, r.text, r.tokens, r.checkpoint).policy(level)
    return lambda sparsity: svd.with_attention(made.policy(sparsity), inputs.thresholds, level)


METHODS: dict[str, Callable[[Request], PolicyMaker]] = {
    "uniform": _uniform,
    "teal": _teal,
    "wina": _wina,
    "wisparse": _wisparse,
    "svd": _svd,
}


def calibrate(
    method: str,
    llama: Llama,
    container: Container,
    tokenizer: Tokenizer,
    text: str,
    most: int,
    folder: Path | None = None,
    search: Search | None = None,
    predictor: PredictorSettings | None = None,
    elsewhere: Elsewhere | None = None,
) -> PolicyMaker:
    """Calibrate on the first `most` tokens of `text`; its paragraphs' hashes are kept in every policy.

    `folder`: where checkpoints are kept, and found again by the next call (None: nowhere). `search`: sizes and seed of
    the searches of TEAL and WiSparse. `predictor`: what is asked of SVD's predictors. `elsewhere`: what runs the
    text's windows, and evaluates budgets for WiSparse (None: `llama`). Raises PolicyError for an unknown method, for a
    text (or `most`) of fewer than 256 tokens, and for checkpoints of something else.
    """
    if method not in METHODS:
        raise PolicyError(f"unknown method {method!r}; there are: {', '.join(METHODS)}")
    tokens = tokenizer.encode(text)[: max(most, 0)]
    if len(tokens) < MIN_TOKENS:
        raise PolicyError(f"{len(tokens)} tokens to calibrate on, expected {MIN_TOKENS} or more")
    identity: Identity = {"model": container.fingerprint, "text": uniform.sha256(text), "tokens": len(tokens)}
    search = search or Search()
    if rough(search):
        identity = {**identity, "pick": search.pick, "windows": search.windows, "alone_windows": search.alone_windows}
    predictor, made_with = predictor or PredictorSettings(), Checkpoint(folder, identity)
    make = METHODS[method](Request(llama, container, text, tokens, made_with, search, predictor, elsewhere))
    hashes = paragraph_hashes(text)

    def policy(sparsity: float) -> SparsityPolicy:
        made = make(sparsity)
        return dataclasses.replace(made, calibration={**made.calibration, "paragraphs": hashes})

    return policy


def rough(search: Search) -> bool:
    """Whether what is found inside layers is not what the default sizes find."""
    usual = Search()
    return (search.pick, search.windows, search.alone_windows) != (usual.pick, usual.windows, usual.alone_windows)


def checkpoint_folder(container: Container, text: str, most: int, search: Search) -> Path:
    """Where checkpoints of calibrating on the first `most` tokens of a text are kept by default."""
    name = f"{uniform.sha256(text)[:12]}-{most}{'-rough' if rough(search) else ''}"
    return cache_dir() / "calibrations" / container.fingerprint / name
