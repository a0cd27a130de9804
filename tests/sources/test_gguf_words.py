"""Ids and ends of every pre-tokenizer against llama.cpp, on a small vocabulary whose merges cross every kind of cut."""

from __future__ import annotations

import ctypes
import json

import gguf
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from spqt_ti.sources.gguf_file import GgufFile
from spqt_ti.sources.gguf_tokenizer import end_ids, tokenizer_json
from spqt_ti.sources.gguf_words import WORDS

TEXTS = (
    "Hello world, it's 12345 o'clock; I'LL we've   go!!\n\nNext\r\n\tline  ",
    "HTTPServer fooBar ÉCOLE école Straße ЖЖж привет мир 日本語テキスト 한국어 العربية. हिन्दी",
    "a/b//c?x=1&y=2 $5.00 <tag> {1_000} ~~ ``` | ^",
    "1 22 333 4444 55555 ٣٤٥ x² ½ Ⅷ 1,000.5",
    "    def f(x):\n        return x**2  # comment\n\n\n",
    "'s 's'S don't DON'T can\u2019t",
    "éA éAb Ab AB aB ǅx ͅa",
)
NOT_LLAMA_CPPS = {"hunyuan-dense"}  # the same cuts as deepseek-v3; which vocabularies it takes is checked there


@pytest.fixture(scope="module")
def merged() -> dict:
    """Vocabulary and merges trained on whole lines: merges go across words, digits, spaces and signs."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\0", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    # Parts of texts as well, so that pieces of every length become tokens.
    parts = [text[i : i + n] for text in TEXTS for n in (2, 3, 4, 6) for i in range(len(text))]
    made.train_from_iterator([*TEXTS, *parts], trainer)

    model = json.loads(made.to_str())["model"]
    return {"tokens": sorted(model["vocab"], key=model["vocab"].get), "merges": [" ".join(m) for m in model["merges"]]}


def _write(path, merged: dict, pre: str, extra: tuple[str, ...] = ()) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    tokens = [*merged["tokens"], *extra]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(merged["merges"])
    writer.add_bos_token_id(5)
    writer.add_eos_token_id(6)
    writer.add_add_bos_token(False)
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 32)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


class _LlamaCpp:
    """llama.cpp's vocabulary of a file."""

    def __init__(self, path) -> None:
        self.library = pytest.importorskip("llama_cpp", reason="llama.cpp is the reference for GGUF files")
        options = self.library.llama_model_default_params()
        options.vocab_only = True
        self.library.llama_log_set(_SILENT, ctypes.c_void_p(0))
        self.model = self.library.llama_model_load_from_file(str(path).encode(), options)
        assert self.model, f"llama.cpp does not load {path}"
        self.vocabulary = self.library.llama_model_get_vocab(self.model)

    def encode(self, text: str) -> list[int]:
        raw = text.encode()
        ids = (self.library.llama_token * (len(raw) + 8))()
        count = self.library.llama_tokenize(self.vocabulary, raw, len(raw), ids, len(ids), False, False)
        return list(ids[:count])

    def ends(self) -> set[int]:
        count = self.library.llama_vocab_n_tokens(self.vocabulary)
        return {i for i in range(count) if self.library.llama_vocab_is_eog(self.vocabulary, i)}

    def close(self) -> None:
        self.library.llama_model_free(self.model)


_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


@pytest.mark.parametrize("pre", sorted(WORDS.keys() - NOT_LLAMA_CPPS))
def test_ids_of_llama_cpp(pre, merged, tmp_path):
    path = tmp_path / "v.gguf"
    _write(path, merged, pre)
    theirs = _LlamaCpp(path)
    ours = tokenizers.Tokenizer.from_str(tokenizer_json(GgufFile.open(path).metadata))
    wrong = [
        (text, ours.encode(text, add_special_tokens=False).tokens)
        for text in TEXTS
        if ours.encode(text, add_special_tokens=False).ids != theirs.encode(text)
    ]
    theirs.close()
    assert not wrong


@pytest.mark.parametrize(
    "extra",
    [
        ("<|eot_id|>", "<|end_of_text|>", "</s>"),
        ("<|end|>", "<|return|>", "<|call|>"),
        ("<|end|>", "<|flush|>", "<|calls|>"),
        ("<|tool_response>", "</s>", "<turn|>"),
        ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
        ("<|im_end|>", "<|endoftext|>", "[EOS]"),
    ],
)
def test_ends_of_llama_cpp(extra, merged, tmp_path):
    path = tmp_path / "v.gguf"
    _write(path, merged, "gpt-2", extra)
    theirs = _LlamaCpp(path)
    expected = theirs.ends()
    theirs.close()
    assert set(end_ids(GgufFile.open(path).metadata)) == expected


def test_ends_of_smollm2(smollm2_gguf):
    theirs = _LlamaCpp(smollm2_gguf)
    expected = theirs.ends()
    theirs.close()
    assert set(end_ids(GgufFile.open(smollm2_gguf).metadata)) == expected
