"""EleutherAI's lm-evaluation-harness on sparse models (extra `lm-eval`). Importing this registers the model `spqt`:

    import lm_eval, spqt_ti.evaluation.harness
    lm_eval.simple_evaluate("spqt", {"model": "smollm2-135m", "policy": "policy.json"}, tasks=["lambada_openai"])

or, with the harness's own options, `python -m spqt_ti.evaluation.harness --model spqt --model_args
model=smollm2-135m,sparsity=0.4 --tasks ...`.

Likelihoods are of tokens as if each were decoded, those of the context too (masked prefill, as in perplexity.py). What
is generated is really decoded, after a dense prefill of the prompt.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from spqt_ti.api import load
from spqt_ti.errors import BackendError, GenerationError
from spqt_ti.generation.answer import Answer
from spqt_ti.generation.loop import generate_tokens
from spqt_ti.generation.sampling import Sampling, field_names
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.sparsity.shared_policies import find_policy

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    message = f"lm_eval cannot be imported ({error}): pip install 'spqt-ti[lm-eval]'"
    if __name__ == "__main__":
        sys.exit(f"error: {message}")
    raise BackendError(message) from error


@register_model("spqt")
class SpqtLM(TemplateLM):
    """A model of `spqt_ti.load` (`model`, `threads`, `context`), with a uniform `sparsity` or a `policy` file.

    All of a policy's thresholds count, also where decoding would run a matrix densely because that is faster. The
    harness's batch sizes and device change nothing: one sequence at a time, on the CPU.
    """

    def __init__(
        self,
        model: str | Path,
        policy: str | Path | None = None,
        sparsity: float = 0.0,
        context: int | None = None,
        threads: int | None = None,
        max_gen_toks: int = 256,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ) -> None:
        del batch_size, max_batch_size, device
        super().__init__()
        if policy is not None and sparsity:
            raise GenerationError("give a policy or a sparsity, not both")
        self._model = load(model, threads=threads, context=context)
        self._llama = self._model.llama
        if policy is not None:
            self._gate(find_policy(policy))
        elif sparsity:
            self._gate(self._model.calibrate().policy(sparsity))
        self.tokenizer = self._model.tokenizer
        self._max_new = max_gen_toks
        config = self._llama.config
        self._ends = [token for token in (config.bos_token_id, *config.eos_token_ids) if token is not None]
        if not self._ends:
            raise GenerationError(f"{model} has neither a BOS nor an end-of-sequence token to put before a text")
        self._cached: list[int] = []  # tokens in the KV cache, put there by masked prefill

    def _gate(self, policy: SparsityPolicy) -> None:
        policy.check(self._model.container.fingerprint, self._llama.config.num_hidden_layers)
        policy.apply(self._llama)

    @property
    def tokenizer_name(self) -> str:
        """What the harness's cache of tokenised requests goes by."""
        return self._model.container.fingerprint

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._ends[-1]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it: BOS, or the end of the text before."""
        return self._ends[0]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        """Token ids; control tokens spelled out in the text count as such, as in Hugging Face's tokenizers.

        A text that begins with BOS, as chat templates write it, gets no second one.
        """
        begun = self.tokenizer.encode(string, parse_special=True, add_special=False)[: len(self.tokenizer.bos)]
        special = add_special_tokens is not False and not (begun and begun == self.tokenizer.bos)
        return self.tokenizer.encode(string, parse_special=True, add_special=special)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the model's chat template writes it."""
        return self.tokenizer.chat(chat_history, add_generation_prompt=add_generation_prompt)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding would give it."""
        results = []
        for key, context, continuation in tqdm(requests, desc="likelihoods", disable=disable_tqdm):
            if not continuation:
                raise GenerationError("there is a continuation without tokens")
            result = self._score(context, continuation)
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, result)
            results.append(result)
        return results

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """A context that is too long loses its beginning."""
        if len(continuation) > self._llama.context:
            raise GenerationError(
                f"a continuation of {len(continuation)} tokens does not fit the context of {self._llama.context}"
            )
        tokens = [*context, *continuation][-self._llama.context - 1 :]
        logits = self._logits(tokens[:-1], len(tokens) - 1 - len(continuation)).astype(np.float64)
        top = logits.max(axis=1)
        chosen = logits[np.arange(len(continuation)), continuation]
        total = float((chosen - top - np.log(np.exp(logits - top[:, None]).sum(axis=1))).sum())
        return total, bool((logits.argmax(axis=1) == continuation).all())

    def _logits(self, tokens: Sequence[int], since: int) -> np.ndarray:
        """Logits f32 [len(tokens) - since, vocab]; what the cache shares with `tokens` is not computed again."""
        shared = 0
        while shared < min(since, len(self._cached)) and self._cached[shared] == tokens[shared]:
            shared += 1
        self._llama.position = shared
        self._cached = []  # in case of an error
        if shared < since:
            self._llama.prefill(tokens[shared:since], "none", masked=True)
        logits = self._llama.prefill(tokens[since:], "all", masked=True)
        self._cached = list(tokens)
        return logits

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, each token with as much before it as the context holds."""
        results = []
        for request in tqdm(requests, desc="texts", disable=disable_tqdm):
            (text,) = request.args
            ids = self.tok_encode(text, add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self._llama.context, 1)
            total = sum(self._score(*make_disjoint_window(window))[0] for window in windows)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            results.append(total)
        return results

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations, each up to the first of its stop sequences; a prompt that is too long loses its beginning."""
        results = []
        for request in tqdm(requests, desc="generate", disable=disable_tqdm):
            prompt, options = request.args
            text = self._generate(prompt, normalize_gen_kwargs(options, self._max_new))
            self.cache_hook.add_partial("generate_until", request.args, text)
            results.append(text)
        return results

    def _generate(self, prompt: str, options: Any) -> str:
        room = self._llama.context - options["max_gen_toks"]
        if room < 1:
            raise GenerationError(
                f"{options['max_gen_toks']} new tokens leave no room in the context of {self._llama.context}"
            )
        tokens = (self.tok_encode(prompt) or [self.prefix_token_id])[-room:]
        sampling = Sampling(**{name: options[name] for name in field_names() if name in options})
        stop = [string for string in options["until"] if string]
        answer = Answer(self.tokenizer.stream(continues=True), self.tokenizer.eos_ids, stop)
        self._cached = []
        most, spelled = options["max_gen_toks"], self.tokenizer.spelled
        for _ in generate_tokens(self._llama, tokens, most, sampling, answer.ends, spelled=spelled):
            pass
        return postprocess_generated_text(answer.take(last=True), options["until"], None)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
