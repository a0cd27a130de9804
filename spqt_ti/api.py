"""The public interface: `load` a model, ask it for logits, stream or generate text."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spqt_ti import backend as backends
from spqt_ti import checks
from spqt_ti.backend import requested
from spqt_ti.cache import cache_dir, private_folder
from spqt_ti.children import python_command
from spqt_ti.container import Container
from spqt_ti.container.directories import discard, remove_leftovers
from spqt_ti.convert.identity import cached_copy
from spqt_ti.convert.quantize import quantize
from spqt_ti.errors import BackendError, CacheError, CheckpointError, ContainerError, GenerationError, PolicyError
from spqt_ti.generation import overflow
from spqt_ti.generation.answer import Answer, checked_stops
from spqt_ti.generation.beams import Beams, beam_search
from spqt_ti.generation.constraint import Constraint, Matcher, Vocabulary
from spqt_ti.generation.embedding import checked as checked_pooling
from spqt_ti.generation.embedding import embedding
from spqt_ti.generation.loop import Stats, generate_tokens
from spqt_ti.generation.prefix_file import load_prefix, save_prefix
from spqt_ti.generation.sampling import Sampling, of_fields
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.kernels.pack import quantize as pack
from spqt_ti.model.runner import Llama, positions, too_long
from spqt_ti.model.sites import SITES
from spqt_ti.model.tuning import Tuning
from spqt_ti.paths import expanded
from spqt_ti.sources import registry
from spqt_ti.sparsity.methods import uniform
from spqt_ti.sparsity.policy import SparsityPolicy, be_dense
from spqt_ti.sparsity.shared_policies import find_policy
from spqt_ti.texts import read_text, sha256

Prompt = str | Sequence[Mapping[str, Any]]  # text, or a conversation: messages with `role` and `content`


@dataclass(frozen=True)
class Piece:
    """A piece of streamed text with the token that completed it; `finish_reason` and `stats` come with the last one."""

    text: str
    token: int
    finish_reason: str | None = None
    stats: Stats | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Generation:
    """A finished text.

    `token_ids` are the new tokens, an end-of-sequence token included; it is not part of the text.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    stats: Stats


@dataclass(frozen=True)
class Beam:
    """A text that beam search found. `log_probability`: natural logarithm of the whole text's; `score`: what texts were
    compared by, see generation/beams.py.
    """

    text: str
    token_ids: list[int]
    log_probability: float
    score: float
    finish_reason: str


@dataclass(frozen=True)
class BeamGeneration:
    """What beam search found, the best text first. `stats` counts the decoded tokens of all beams."""

    beams: list[Beam]
    stats: Stats


@dataclass(frozen=True)
class Request:
    """What is asked of a model. Raises GenerationError for values of another type or out of range."""

    prompt: Prompt
    max_new_tokens: int = 64
    sampling: Sampling = field(default_factory=Sampling)
    chat: bool = False
    stop: str | Sequence[str] | None = None
    constraint: Constraint | None = None
    on_overflow: str = "stop"

    def __post_init__(self) -> None:
        if isinstance(self.prompt, Sequence) and not isinstance(self.prompt, str | bytes | bytearray):
            if not self.prompt:
                raise GenerationError("the conversation is empty")
        else:
            checks.text("the prompt", self.prompt)
            if self.chat and not self.prompt.strip():
                raise GenerationError("the prompt is empty")
        checks.whole_number("max_new_tokens", self.max_new_tokens, 1)
        checked_stops(self.stop)
        overflow.checked(self.on_overflow)
        if not isinstance(self.constraint, Constraint | None):
            raise GenerationError(f"constraint must be a Constraint, not {type(self.constraint).__name__}")

    @property
    def messages(self) -> list[Mapping[str, Any]] | None:
        """The conversation; None for plain text."""
        if not isinstance(self.prompt, str):
            return list(self.prompt)
        return [{"role": "user", "content": self.prompt}] if self.chat else None

    def encode(self, tokenizer: Tokenizer, context: int | None = None) -> list[int]:
        """Token ids of the prompt. `context`: where the window slides, a longer conversation loses its oldest turns.

        Raises GenerationError where there are none, or no chat template."""
        if self.messages is not None:
            messages: overflow.Messages = self.messages
            if self.on_overflow == "slide" and context is not None:
                messages = overflow.recent(messages, tokenizer.encode_chat, context)
            return tokenizer.encode_chat(messages)
        assert isinstance(self.prompt, str)
        tokens = tokenizer.encode(self.prompt)
        if not tokens:
            raise GenerationError("the prompt is empty")
        return tokens

    def keep(self, tokenizer: Tokenizer) -> int | None:
        """Tokens that a sliding window begins with; None where it does not slide."""
        if self.on_overflow == "stop":
            return None
        return overflow.SINKS if self.messages is None else overflow.start_of(self.messages, tokenizer.encode_chat)


class Model:
    """A loaded model with its tokenizer and sparsity policy. One sequence at a time."""

    def __init__(self, container: Container, llama: Llama, policy: SparsityPolicy | None = None) -> None:
        self.container, self.llama = container, llama
        self.tokenizer = Tokenizer(container.tokenizer_json, container.config, container.chat_template)
        self._policy: SparsityPolicy | None = None
        self._vocabulary: Vocabulary | None = None
        self._making = threading.Lock()
        if policy is not None:
            self.apply(policy)

    @property
    def policy(self) -> SparsityPolicy | None:
        """The policy in force; None decodes densely."""
        return self._policy

    def apply(self, policy: SparsityPolicy | None) -> None:
        """Decode with `policy` from now on (None: densely); matrices for which skipping does not pay at its level run
        dense (see model/dispatch.py). Raises PolicyError if it was made for another model.
        """
        if policy is not None:
            policy.check(self.container.fingerprint, self.llama.config.num_hidden_layers)
        with self.llama.exclusive():
            if policy is None:
                be_dense(self.llama)
            else:
                pays = [self.llama.choices[site].runs_sparse(policy.sparsity) for site in SITES]
                policy.apply(self.llama)
                self.llama.thresholds[:, np.logical_not(pays)] = 0
            self._policy = policy

    def calibrate(self, text: str | None = None) -> uniform.Calibration:
        """Quantiles of every site's inputs over `text` (default: the sample that comes with the package).

        The result is kept beside the model, in the cache folder where that cannot be written, and found there again.
        Raises PolicyError for a text without tokens.
        """
        identity = sha256(text if text is not None else uniform.sample_text())
        name = "calibration.json" if text is None else f"calibration-{identity[:12]}.json"
        folders = [self.container.path]
        with contextlib.suppress(CacheError):  # without a cache folder it is not kept there
            folders.append(cache_dir() / "calibrations" / self.container.fingerprint)
        for folder in folders:
            if (folder / name).is_file():
                found = uniform.Calibration.load(folder / name)
                if (found.model, found.text_sha256) == (self.container.fingerprint, identity):
                    return found
        text = uniform.sample_text() if text is None else text
        with self.llama.exclusive():
            fresh = uniform.calibrate(self.llama, self.container.fingerprint, text, self.tokenizer.encode(text))
        if self.llama.context < uniform.WINDOW < self.container.config.max_position_embeddings:
            return fresh  # a short context makes other thresholds: good enough for now, not to be kept
        for folder in folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                fresh.save(folder / name)
                break
            except OSError:
                continue  # not writable: the next folder, or none at all
        return fresh

    def logits(self, token_ids: Sequence[int] | np.ndarray, *, mode: str = "prefill") -> np.ndarray:
        """Logits f32 [T, vocab] of a sequence from its start: "prefill" densely, "decode" token by token through the
        sparse step.

        Raises GenerationError for another mode, no tokens, ids that are no whole numbers or unknown, more tokens than
        the context, and logits that are not finite numbers (with the layer).
        """
        if mode not in ("prefill", "decode"):
            raise GenerationError(f'mode must be "prefill" or "decode", not {mode!r}')
        with self.llama.exclusive():
            self.llama.reset()
            if mode == "prefill":
                return self.llama.prefill(token_ids, logits="all")
            ids = checks.token_ids(token_ids, self.llama.config.vocab_size)
            return np.stack([self.llama.decode(token).copy() for token in ids])

    def embed(
        self, texts: str | Sequence[str], *, pooling: str = "mean", normalize: bool = True
    ) -> np.ndarray:  # fmt: skip
        """Embedding f32 [hidden] of a text, or f32 [n, hidden] of a list of texts: of its tokens' hidden states after
        the final norm, the "mean" or the "last" one's, with `normalize` divided by its Euclidean length.

        Texts run densely, whatever the policy. GenerationError for an empty text, one that is longer than the context,
        an empty list, and another pooling.
        """
        checked_pooling(pooling)
        many = [texts] if isinstance(texts, str) else texts
        if not isinstance(many, Sequence) or isinstance(many, bytes | bytearray) or not many:
            raise GenerationError("texts to embed are a str, or a list of at least one")
        tokens = [self.tokenizer.encode(checks.text("a text to embed", text)) for text in many]
        with self.llama.exclusive():
            found = np.stack([embedding(self.llama, ids, pooling, normalize=normalize) for ids in tokens])
        return found[0] if isinstance(texts, str) else found

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        chat: bool = False,
        stop: str | Sequence[str] | None = None,
        constraint: Constraint | None = None,
        on_overflow: str = "stop",
        **fields: Any,
    ) -> Iterator[Piece]:
        """Yield text as it is generated; with `chat` the prompt is a user's message in the model's chat template, as it
        is where it is a list of messages (`role`, `content`).

        The text ends before the first of the strings in `stop`. What the KV cache has of the prompt from the call
        before is not computed again, with the same results bit for bit.
        `constraint`: a form that the answer has to have (generation/constraint.py). `on_overflow`: a full context ends
        the text ("stop"), or goes on as a window that keeps the start ("slide", see generation/overflow.py).
        `sampling`: how tokens are drawn (default: greedily); its fields may be given by name instead, as in
        `stream(prompt, temperature=0.8, top_k=40)`. A model holds one sequence: any other call that uses the model
        ends the stream, whose next step then raises GenerationError. Threads may share a model on these terms.

        Raises GenerationError, here, for arguments of another type or out of range, an empty prompt, and `chat` asked
        of a model without a template; at the first step for a prompt longer than the context; at any step for logits
        that are not finite numbers.
        """
        request = Request(prompt, max_new_tokens, _sampling(sampling, fields), chat, stop, constraint, on_overflow)
        return self._stream(request, request.encode(self.tokenizer, self.llama.context))

    def save_prefix(self, path: str | Path) -> int:
        """Write the KV cache of the last prompts to a file, for `load_prefix` of another process; returns how many
        tokens it has. The file holds the prompt's tokens. GenerationError where there is none yet, or no place for it.
        """
        return save_prefix(self.llama, self.container.fingerprint, expanded(path))

    def load_prefix(self, path: str | Path) -> int:
        """Put what `save_prefix` wrote into the KV cache, for the next prompt that begins like it; answers are those
        without it, bit for bit. Returns the number of tokens.

        GenerationError for a damaged file, and for one of another model, version, machine, context, number of threads
        or `exact`.
        """
        return load_prefix(self.llama, self.container.fingerprint, expanded(path))

    def matcher(self, constraint: Constraint) -> Matcher:
        """What follows an answer that has to be of this form, for `generate_tokens`."""
        with self._making:
            if self._vocabulary is None:
                made = self.container
                tokenizer = Tokenizer(made.tokenizer_json, made.config, made.chat_template)  # for this alone
                self._vocabulary = Vocabulary(tokenizer, made.config.vocab_size)
        return self._vocabulary.matcher(constraint)

    def _stream(self, request: Request, tokens: Sequence[int]) -> Iterator[Piece]:
        decoder = self.tokenizer.stream(continues=request.messages is None)
        answer = Answer(decoder, self.tokenizer.eos_ids, checked_stops(request.stop))
        matcher = None if request.constraint is None else self.matcher(request.constraint)
        keep = request.keep(self.tokenizer)
        for step in generate_tokens(
            self.llama, tokens, request.max_new_tokens, request.sampling, answer.ends, matcher=matcher, keep=keep,
            spelled=self.tokenizer.spelled,
        ):  # fmt: skip
            text = answer.take(last=step.finish_reason is not None)
            yield Piece(text, step.token, step.finish_reason, step.stats)

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        chat: bool = False,
        stop: str | Sequence[str] | None = None,
        constraint: Constraint | None = None,
        on_overflow: str = "stop",
        **fields: Any,
    ) -> Generation:
        """The whole of `stream` at once. Calls of several threads wait for one another."""
        request = Request(prompt, max_new_tokens, _sampling(sampling, fields), chat, stop, constraint, on_overflow)
        tokens = request.encode(self.tokenizer, self.llama.context)
        with self.llama.exclusive():
            pieces = list(self._stream(request, tokens))
        last = pieces[-1]
        assert last.finish_reason is not None
        assert last.stats is not None
        text = "".join(piece.text for piece in pieces)
        return Generation(text, [piece.token for piece in pieces], last.finish_reason, last.stats)

    def beam_search(
        self,
        prompt: Prompt,
        *,
        beams: int = 4,
        length_penalty: float = 1.0,
        max_new_tokens: int = 64,
        chat: bool = False,
        constraint: Constraint | None = None,
    ) -> BeamGeneration:
        """The likeliest texts of those that the `beams` likeliest beginnings lead to: as many texts, best first.

        Each step decodes a token per beam, one after the other, with the policy in force. Other arguments as of
        `stream`; `length_penalty`: see generation/beams.py. Raises GenerationError as `stream` and `generate` do.
        """
        how = Beams(beams, length_penalty)
        request = Request(prompt, max_new_tokens, chat=chat, constraint=constraint)
        tokens, eos_ids = request.encode(self.tokenizer), self.tokenizer.eos_ids
        matcher = None if constraint is None else self.matcher(constraint)
        found, stats = beam_search(self.llama, tokens, max_new_tokens, how, eos_ids, matcher)
        texts = []
        for one in found:
            decoder = self.tokenizer.stream(continues=request.messages is None)
            text = "".join([decoder.push(token) for token in one.tokens if token not in eos_ids]) + decoder.finish()
            texts.append(Beam(text, one.tokens, one.log_probability, one.score, one.finish_reason))
        return BeamGeneration(texts, stats)


def _sampling(sampling: Sampling | None, fields: dict[str, Any]) -> Sampling:
    """The one given, or one of these fields. Raises GenerationError for both at once and for unknown fields."""
    if not fields:
        sampling = sampling if sampling is not None else Sampling()
        if not isinstance(sampling, Sampling):
            raise GenerationError(f"sampling must be a Sampling, not {type(sampling).__name__}")
        return sampling
    if sampling is not None:
        raise GenerationError(f"give sampling or its fields ({', '.join(fields)}), not both")
    return of_fields(fields)


def load(
    path_or_name: str | Path | Container,
    *,
    backend: str | None = None,
    sparsity: float | SparsityPolicy | str | Path = 0.0,
    threads: int | None = None,
    context: int | None = None,
    calibration_text: str | Path | None = None,
    exact: bool = False,
) -> Model:
    """Load a quantised directory, or a source model (known name, Hugging Face directory or id, GGUF), which is
    quantised once.

    `backend`: "cpu", "vulkan", "cuda", "metal" or "auto"; None: SPQT_BACKEND, else "cpu".
    `sparsity`: a level between 0 and 0.99 for every site (thresholds from a short calibration that is kept beside the
    model), a policy, a policy's JSON file, or a name of one (`smollm2-135m:0.5`, see sparsity/shared_policies.py).
    `threads`: worker threads (default: every CPU of the process).
    `context`: positions of the KV cache. `calibration_text`: a UTF-8 text file to calibrate on instead of the
    packaged sample. `exact`: f32 throughout; otherwise the KV cache is f16 (keys and values up to 65504), and decoding
    multiplies in 16 bits where the CPU can (see kernels/cpu/tile_sums.py; relative error per product 4e-5 instead of
    1e-6 on inputs of both signs; on inputs of one sign, where two large sums cancel, f32 has about 3e-5 too).

    Raises SpqtError (a subclass that fits) with what is wrong and what to do. Arguments are checked before anything is
    read or quantised.
    """
    if not isinstance(path_or_name, str | Path | Container):
        raise CheckpointError(f"a model is a path or a name, not {type(path_or_name).__name__}")
    policy = sparsity if isinstance(sparsity, SparsityPolicy | str | Path) else check_level(sparsity)
    if threads is not None:
        threads = checks.whole_number("threads", threads, error=BackendError)
    if context is not None:
        context = checks.whole_number("context", context)
    requested(backend)
    text = None if calibration_text is None else read_text(calibration_text)
    if isinstance(policy, str | Path):
        policy = find_policy(policy)
    container = path_or_name if isinstance(path_or_name, Container) else open_quantized(path_or_name, backend)
    tuning = Tuning.load(backends.start(backend, threads).name)
    options: dict[str, Any] = {"threads": threads, "context": context, "exact": exact, "tuning": tuning}
    model = Model(container, Llama(container, backend_name=backend, **options))
    if isinstance(policy, SparsityPolicy):
        model.apply(policy)
    elif policy > 0:
        model.apply(model.calibrate(text).policy(policy))
    return model


def check_prompt(container: Container, request: Request, context: int | None = None) -> None:
    """Raise GenerationError where a request's prompt does not fit the context, before a model is loaded for it."""
    config = container.config
    tokens = request.encode(Tokenizer(container.tokenizer_json, config, container.chat_template))
    room = positions(config, context)
    if len(tokens) > room and request.on_overflow == "stop":
        raise GenerationError(too_long(len(tokens), room, config.max_position_embeddings))


def check_level(sparsity: Any) -> float:
    """A level of uniform sparsity. Raises PolicyError for anything but a number between 0 and 0.99."""
    level = float(sparsity) if isinstance(sparsity, float) else checks.real_number("sparsity", sparsity, PolicyError)
    if not 0 <= level <= uniform.MAX_SPARSITY:
        hint = f"; did you mean {level / 100:g}?" if 1 < level <= 100 * uniform.MAX_SPARSITY else ""
        raise PolicyError(f"sparsity must be between 0 and {uniform.MAX_SPARSITY}, not {sparsity}{hint}")
    return level


def open_quantized(path_or_name: str | Path, backend: str | None = None) -> Container:
    """The container at a path, or the cached one of a source model, made now if it is not there yet.

    `backend`: the one that this process is to have. Quantising takes the CPU's, elsewhere if need be.
    """
    path = expanded(path_or_name)
    if (path / "spqt.json").is_file():
        return Container.open(path)
    source = registry.resolve(path_or_name)
    destination = cached_copy(source)
    there = destination.exists()
    try:
        return Container.open(destination)
    except ContainerError:
        remove_leftovers(destination.parent)  # not there yet, or damaged: this folder is ours to fill
    try:
        private_folder("quantized")
        if there:  # damaged; what has come since is another process's and whole
            discard(destination)
    except OSError as error:
        raise ContainerError(f"{destination}: cannot be written ({error}); SPQT_CACHE_DIR moves the cache") from error
    try:
        if requested(backend) == pack.BACKEND:
            return quantize(source, destination)  # never over a container that another process has opened by now
        return quantize_elsewhere(source, destination)
    except ContainerError:
        if not (destination / "spqt.json").is_file():
            raise
        return Container.open(destination)  # another process was faster


def quantize_elsewhere(
    source: Path, destination: Path, layout: str = "zigzag", scheme: str = "q4_k", rotate: str = ""
) -> Container:  # fmt: skip
    """As `quantize` (rounded to the nearest), in a process of its own, because a process has one backend. `rotate`: as
    for the command. Raises ContainerError.
    """
    # Absolute: in the child a path may not begin with "-".
    paths = [str(path.absolute()) for path in (source, destination)]
    command = python_command("spqt_ti.cli.main", "quantize", *paths, "--layout", layout, "--scheme", scheme)
    command += ["--method", "rtn"]  # the command's default depends on the model
    command += ["--rotate", rotate] if rotate else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"the process ended with code {done.returncode}"])[-1]
        raise ContainerError(f"{source}: cannot be quantised: {last.removeprefix('spqt: error: ')}")
    return Container.open(destination, verify=False)
