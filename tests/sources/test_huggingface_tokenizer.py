"""Tokens of a Hugging Face directory, wherever it lists them, and which of its files make the model; against
transformers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tiny_models import CHAT_TEMPLATE, SENTENCES, random_weights, tiny_config, tiny_tokenizer_json, write_huggingface

from spqt_ti.errors import CheckpointError
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.sources.huggingface_tokenizer import read_tokenizer
from spqt_ti.sources.open import model_files, open_checkpoint

WEIGHTS = random_weights(tiny_config())
MESSAGES = [{"role": "user", "content": "The fox"}]
NAMES = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ image_token }}"


def _token(content: str, **flags: bool) -> dict:
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False} | flags


def _added(content: str, **flags: bool) -> dict:
    return {"__type": "AddedToken"} | _token(content, **flags)


# Name -> files that are written (None: removed) beside a whole directory.
FILES: dict[str, dict] = {
    "text": {"tokenizer_config.json": {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}},
    "objects": {"tokenizer_config.json": {"eos_token": _added("<|im_end|>"), "pad_token": _added("<|endoftext|>")}},
    "new_tokens": {"tokenizer_config.json": {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "<|im_end|>"}},
    "additional": {"tokenizer_config.json": {"additional_special_tokens": ["<|tool|>", "<|im_start|>", "<|x|>"]}},
    "extra": {"tokenizer_config.json": {"extra_special_tokens": ["<|tool|>"], "image_token": "<image>"}},
    "extra_named": {"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<image>"}}},
    "decoder": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "301": _token("<|b|>", special=True), "300": _token("fox", special=False, normalized=True),
                "1": _token("<|im_start|>", special=True),
            },
            "eos_token": "<|im_end|>",
        }
    },
    "decoder_changes_flags": {
        "tokenizer_config.json": {"added_tokens_decoder": {"1": _token("<|im_start|>", special=True, rstrip=True)}}
    },
    "special_map": {
        "tokenizer_config.json": {"eos_token": "<|endoftext|>"},
        "special_tokens_map.json": {"eos_token": "<|im_end|>", "pad_token": _token("<|pad|>")},
    },
    "special_map_not_read": {
        "tokenizer_config.json": {"added_tokens_decoder": {}, "eos_token": "<|endoftext|>"},
        "special_tokens_map.json": {"eos_token": "<|im_end|>"},
    },
    "special_map_has_other_extra_tokens": {
        "tokenizer_config.json": {"additional_special_tokens": ["<|tool|>"]},
        "special_tokens_map.json": {"additional_special_tokens": ["<|x|>"]},
    },
    "special_map_has_extra_tokens": {
        "tokenizer_config.json": {"additional_special_tokens": []},
        "special_tokens_map.json": {"additional_special_tokens": ["<|x|>"]},
    },
    "special_map_has_more_extra_tokens": {
        "tokenizer_config.json": {"extra_special_tokens": ["<|tool|>", "<|x|>"]},
        "special_tokens_map.json": {"extra_special_tokens": ["<|x|>", "<image>"]},
    },
    "added_tokens": {
        "tokenizer_config.json": {"eos_token": "<|im_end|>"}, "added_tokens.json": {"<|a|>": 301, "<|b|>": 300},
    },
    "no_settings": {"tokenizer_config.json": None},
}  # fmt: skip


def _directory(path: Path, files: dict) -> Path:
    write_huggingface(path, tiny_config(), WEIGHTS)
    (path / "chat_template.jinja").write_text(NAMES)
    for name, content in files.items():
        if content is None:
            (path / name).unlink()
        else:
            (path / name).write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | content))
    return path


@pytest.mark.parametrize("name", FILES)
def test_as_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the reference for Hugging Face's directories")
    path = _directory(tmp_path / "m", FILES[name])
    if name == "added_tokens":
        (path / "added_tokens.json").write_text(json.dumps(FILES[name]["added_tokens.json"]))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(path)
    ours = Tokenizer(read_tokenizer(path)[0], tiny_config(vocab_size=400))
    special = ["<|tool|>", "<|x|>", "<image>", "<|b|>", "<|a|>", "<|pad|>", "[PAD]", "[UNK]", "<|im_start|>"]
    for text in (*SENTENCES, "the fox".join(special), " ".join(special), "<|im_start|>  x"):
        assert ours.encode(text, parse_special=True) == theirs.encode(text), text
    ours.chat_template = NAMES
    assert ours.chat(MESSAGES) == theirs.apply_chat_template(MESSAGES, tokenize=False)


def test_the_result_is_a_tokenizer_json(tmp_path):
    """transformers and the library read it as before, roles or not."""
    transformers = pytest.importorskip("transformers", reason="the reference for Hugging Face's directories")
    path = _directory(tmp_path / "m", FILES["text"])
    text, _ = read_tokenizer(path)
    assert "roles" in text
    (path / "tokenizer.json").write_text(text)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(path)
    assert theirs.encode("<|im_end|>x") == Tokenizer(text, tiny_config()).encode("<|im_end|>x", parse_special=True)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer_config.json": {"eos_token": 3}}, "eos_token is 3"),
        ({"tokenizer_config.json": {"eos_token": {"text": "x"}}}, "eos_token is"),
        ({"tokenizer_config.json": {"eos_token": _token("x", special=3)}}, "flags that are true or false"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"x": _token("y")}}}, "by their numbers"),
        ({"tokenizer_config.json": {"added_tokens_decoder": []}}, "by their numbers"),
        ({"tokenizer_config.json": {"additional_special_tokens": "x"}}, "expected a list"),
        ({"tokenizer_config.json": {"split_special_tokens": True}}, "split_special_tokens is true"),
        ({"tokenizer.json": {"added_tokens": 3}}, "added_tokens is no list"),
    ],
)
def test_damaged(files, words, tmp_path):
    path = _directory(tmp_path / "m", files)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_tokenizer(path)
    assert str(path) in str(caught.value)


def test_a_setting_that_tokenizer_json_contradicts_is_said(tmp_path, caplog):
    path = _directory(tmp_path / "m", {"tokenizer_config.json": {"add_prefix_space": False}})
    read_tokenizer(path)
    assert not caplog.records
    (path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    read_tokenizer(path)
    assert "add_prefix_space is true" in caplog.text


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' * 5000, '{"a": NaN}', b"\xff\xfe", "[]", ""])
def test_json_that_is_none(name, content, tmp_path):
    path = _directory(tmp_path / "m", {})
    (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(path)


# Files ----------------------------------------------------------------------------------------------------------------


def test_one_file_goes_before_an_index(tmp_path):
    """As transformers has it: a model that was saved in shards, and again as one file."""
    path = write_huggingface(tmp_path / "m", tiny_config(), random_weights(tiny_config(), 1), shards=2)
    write_huggingface(tmp_path / "n", tiny_config(), WEIGHTS)
    os.replace(tmp_path / "n" / "model.safetensors", path / "model.safetensors")
    name = "model.norm.weight"
    np.testing.assert_array_equal(open_checkpoint(path).read(name), WEIGHTS[name])


def test_what_makes_the_model(tmp_path):
    path = write_huggingface(tmp_path / "m", tiny_config(), WEIGHTS, shards=2)
    files = model_files(path)
    assert {file.name for file in files} == {
        "config.json", "tokenizer.json", "tokenizer_config.json",
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    }  # fmt: skip
    (path / "README.md").symlink_to("../blobs/gone")
    (path / ".#config.json").symlink_to("someone@machine.1234:1700000000")
    (path / "generation_config.json").symlink_to("gone")
    (path / "notes.txt").write_text("x")
    assert model_files(path) == files
    open_checkpoint(path)
    (tmp_path / "m-00001-of-00002.gguf").touch()
    (tmp_path / "m-00002-of-00002.gguf").touch()
    assert [file.name for file in model_files(tmp_path / "m-00001-of-00002.gguf")] == [
        "m-00001-of-00002.gguf", "m-00002-of-00002.gguf",
    ]  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_what_has_no_end_is_no_model(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        for read in (model_files, open_checkpoint):
            with pytest.raises(CheckpointError, match="not a regular file"):
                read(path)


def test_home_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_huggingface(tmp_path / "m", tiny_config(), WEIGHTS)
    assert open_checkpoint("~/m").config == tiny_config()
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint("~nobody-has-this-name/m")


def test_chat_template_of_the_settings(tmp_path):
    path = write_huggingface(tmp_path / "m", tiny_config(), WEIGHTS)
    assert read_tokenizer(path)[1] == CHAT_TEMPLATE
    assert json.loads(tiny_tokenizer_json())["added_tokens"][0]["id"] == 0


def test_half_of_a_surrogate_pair_is_no_token(tmp_path):
    directory = write_huggingface(tmp_path / "m", tiny_config(), WEIGHTS)
    (directory / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<\ud800>"}))
    with pytest.raises(CheckpointError, match="surrogates"):
        read_tokenizer(directory)
