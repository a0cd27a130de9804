"""The programs of a comparison, and what runs in their interpreters: speed, negative log-likelihoods, quantiser.

They need not be installed where spqt_ti is. Each runs at its best: weights in memory and repacked as they are loaded,
ik_llama.cpp with its flash attention.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Peer:
    """A program. `speed`: code that answers the lines "decode" and "prefill N" with tokens per second (arguments: file,
    threads, tokens, prompt). `scores`: code that writes token ids and negative log-likelihoods f64 [windows, n]
    (arguments: file, text, context, windows, threads, .npz, folder or ""); with a folder of log-probabilities f32
    [n, vocab] (evaluation/studies.py, write_reference) KL from them of the same shape as well. `requantise`: code with
    arguments source, target, type. `python`: the interpreter that has `module`.
    """

    name: str
    package: str
    module: str
    types: str
    install: str
    speed: str
    scores: str
    requantise: str
    python: str = "python"

    def of(self, python: str) -> Peer:
        """The same in another interpreter."""
        return replace(self, python=python)


_LLAMA_SPEED = """
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

_SCORE = """
import os, sys
import numpy as np


def score(logits, following, number):
    '''Negative log-likelihoods of window `number`, and KL from the reference; each f64 [n].'''
    top = logits.max(axis=1, keepdims=True)
    logp = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    nll = -logp[np.arange(len(logp)), following]
    if not reference:
        return nll, np.zeros(0)
    wanted = np.load(os.path.join(reference, f"{number}.npy")).astype(np.float64)
    return nll, (np.exp(wanted) * (wanted - logp)).sum(axis=1)


path, text, context, most, threads, out, reference = sys.argv[1:3] + [int(a) for a in sys.argv[3:6]] + sys.argv[6:]
"""

_LLAMA_SCORES = (
    _SCORE
    + """
import llama_cpp
model = llama_cpp.Llama(
    path, n_ctx=context, n_batch=context, n_threads=threads, n_threads_batch=threads, logits_all=True, verbose=False
)
ids = model.tokenize(open(text, "rb").read(), add_bos=True)
bos = [model.token_bos()] if ids[0] == model.token_bos() else []
scores = []
for number, start in enumerate(range(0, len(ids) - context + 1, context)[:most]):
    window = bos + ids[start + len(bos) : start + context]
    model.reset()
    model.eval(window)
    logits = np.array(model.scores[context // 2 : context - 1], np.float64)
    scores.append(score(logits, window[context // 2 + 1 :], number))
nll, kl = map(np.array, zip(*scores))
np.savez(out, ids=np.array(ids), nll=nll, kl=kl)
"""
)

_LLAMA_REQUANTISE = """
import sys, ctypes, llama_cpp
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + sys.argv[3])
parameters.allow_requantize = True
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(parameters)))
"""

# Its bindings' own class maps the file and does not repack, so their C functions are called.
_IK = """
import sys, time
import numpy as np
from ik_llama_cpp import _ctypes_api as C


class Model:
    def __init__(self, path, threads, context, batch):
        C.llama_backend_init()
        p = C.llama_model_default_params()
        p.use_mmap, p.repack_tensors = False, True
        self.model = C.llama_model_load_from_file(path.encode(), p)
        c = C.llama_context_default_params()
        c.n_ctx, c.n_batch, c.n_ubatch, c.flash_attn = context, batch, batch, True
        c.n_threads = c.n_threads_batch = threads
        self.context = C.llama_init_from_model(self.model, c) if self.model else None
        if not self.context:
            sys.exit(f"ik_llama.cpp cannot load {path}")
        self.size = C.llama_vocab_n_tokens(C.llama_model_get_vocab(self.model))
        self.position = 0

    def tokenize(self, data, bos):
        ids = (C.llama_token * (3 * len(data) + 8))()  # a space that is in no token is three bytes
        return list(ids[: C.llama_tokenize(self.model, data, len(data), ids, len(ids), bos, False)])

    def reset(self):
        C.llama_kv_cache_clear(self.context)
        self.position = 0

    def eval(self, ids, every=False):
        batch = C.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, self.position + i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, every or i == len(ids) - 1
        code = C.llama_decode(self.context, batch)
        C.llama_batch_free(batch)
        if code:
            sys.exit(f"llama_decode returned {code}")
        self.position += len(ids)

    def logits(self, i=-1):
        return np.ctypeslib.as_array(C.llama_get_logits_ith(self.context, i), (self.size,))

"""

_IK_SPEED = (
    _IK
    + """
import os
answers = os.fdopen(os.dup(1), "w")  # the library writes advice to stdout
os.dup2(2, 1)
path, threads, tokens, prompt = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
model = Model(path, threads, 2048, 512)
ids = model.tokenize(prompt.encode(), False)
print("ready", file=answers, flush=True)
for line in sys.stdin:
    model.reset()
    if line.startswith("prefill"):
        count = int(line.split()[1])
        prompt_ids = (ids * (count // len(ids) + 1))[:count]
        begin = time.perf_counter()
        for start in range(0, count, 512):
            model.eval(prompt_ids[start : start + 512])
        model.logits()
        print(count / (time.perf_counter() - begin), file=answers, flush=True)
        continue
    model.eval(ids)
    begin = time.perf_counter()
    for _ in range(tokens):
        model.eval([int(model.logits().argmax())])
    model.logits()
    print(tokens / (time.perf_counter() - begin), file=answers, flush=True)
"""
)

_IK_SCORES = (
    _SCORE
    + _IK
    + """
model = Model(path, threads, context, context)
data = open(text, "rb").read()
plain, ids = model.tokenize(data, False), model.tokenize(data, True)
bos = ids[:1] if len(ids) > len(plain) else []
scores = []
for number, start in enumerate(range(0, len(ids) - context + 1, context)[:most]):
    window = bos + ids[start + len(bos) : start + context]
    model.reset()
    model.eval(window, True)
    logits = np.array([model.logits(i) for i in range(context // 2, context - 1)], np.float64)
    scores.append(score(logits, window[context // 2 + 1 :], number))
nll, kl = map(np.array, zip(*scores))
np.savez(out, ids=np.array(ids), nll=nll, kl=kl)
"""
)

# Numbers of its header's llama_ftype; the fields are those of its llama_model_quantize_params.
_IK_REQUANTISE = """
import ctypes, sys
from ik_llama_cpp import _ctypes_api as C
TYPES = dict(
    F16=1, Q4_0=2, Q4_1=3, Q8_0=7, Q4_K_S=14, Q4_K_M=15, Q6_K=18, IQ4_NL=25, IQ4_XS=30, MXFP4=38, IQ4_K=140, IQ4_KS=145,
    IQ4_KSS=148, IQ4_KT=153,
)


class Parameters(ctypes.Structure):
    _fields_ = [
        ("threads", ctypes.c_int32), ("ftype", ctypes.c_int), ("tensor_types", ctypes.c_int * 11),
        ("allow_requantize", ctypes.c_bool), ("flags", ctypes.c_bool * 8), ("pointers", ctypes.c_void_p * 4),
    ]


quantise, defaults = C._lib.llama_model_quantize, C._lib.llama_model_quantize_default_params
quantise.argtypes, quantise.restype = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters)], ctypes.c_uint32
defaults.restype = Parameters
parameters = defaults()
parameters.ftype, parameters.allow_requantize = TYPES[sys.argv[3]], True
sys.exit(quantise(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(parameters)))
"""

LLAMA_CPP = Peer(
    "llama.cpp", "llama-cpp-python", "llama_cpp", "source,Q4_0,Q4_1,Q4_K_S,Q4_K_M,IQ4_NL,IQ4_XS",
    "CMAKE_ARGS=-DGGML_NATIVE=ON pip install 'spqt-ti[peers]'", _LLAMA_SPEED, _LLAMA_SCORES, _LLAMA_REQUANTISE,
)  # fmt: skip
IK_LLAMA_CPP = Peer(
    "ik_llama.cpp", "ik-llama-cpp-python", "ik_llama_cpp",
    "source,Q4_0,Q4_1,Q4_K_S,Q4_K_M,IQ4_NL,IQ4_XS,IQ4_KS,IQ4_KSS,IQ4_K,IQ4_KT",
    "docs/performance.md, Peers", _IK_SPEED, _IK_SCORES, _IK_REQUANTISE,
)  # fmt: skip
