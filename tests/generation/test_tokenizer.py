"""Token ids against llama.cpp and transformers, decoding and streaming against `tokenizers`, chat templates."""

from __future__ import annotations

import base64
import itertools
import json
import os
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CHAT_TEMPLATE, SENTENCES, tiny_config, tiny_tokenizer_json

from spqt_ti.errors import CheckpointError, GenerationError
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.sources.gguf_file import GgufFile
from spqt_ti.sources.gguf_tokenizer import declared_ends, end_ids, sentencepiece_merges, tokenizer_json
from spqt_ti.sources.open import open_checkpoint

# ids of llama.cpp (xllamacpp 2026.10, /tokenize with add_special) for the GGUF of SmolLM2.
GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "smollm2_tokens.json").read_text())
MESSAGES = [{"role": "user", "content": "Hi <|im_end|> there"}]
TEXTS = [*SENTENCES, "", " ", "  two  spaces ", "\n\n\t", "🎉👩‍👩‍👧", "\x00", "x<|im_end|>y", "é", "▁"]

# SentencePiece in small: control and unknown, 256 bytes, characters, and pieces whose scores contradict left-to-right.
PIECES = ["▁", "a", "b", "c", "o", "ab", "bc", "abc", "▁a", "▁ab", "co", "oc", "aa", "▁▁", "é", "bco"]
SPM_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
SPM_TYPES = [2, 3, 3, *[6] * 256, *[1] * len(PIECES)]
SPM_SCORES = [0.0] * 259 + [
    -9.0,
    -9.0,
    -9.0,
    -9.0,
    -9.0,
    -3.0,
    -1.0,
    -6.0,
    -2.0,
    -4.0,
    -5.0,
    -5.5,
    -2.5,
    -7.0,
    -8.0,
    -1.5,
]
SPM = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": SPM_TOKENS,
    "tokenizer.ggml.token_type": SPM_TYPES,
    "tokenizer.ggml.scores": SPM_SCORES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def test_a_tokenizer_that_divides_by_chance_is_refused():
    fields = json.loads(tiny_tokenizer_json())
    fields["model"]["dropout"] = 0.1
    with pytest.raises(CheckpointError, match=r"dropout of 0\.1"):
        Tokenizer(json.dumps(fields), tiny_config())
    fields["model"]["dropout"] = 0.0
    Tokenizer(json.dumps(fields), tiny_config())


def test_added_tokens_without_end_are_refused():
    fields = json.loads(tiny_tokenizer_json())
    fields["added_tokens"] += [dict(fields["added_tokens"][0], id=300 + i, content=f"{i}" * 100) for i in range(9000)]
    with pytest.raises(CheckpointError, match=r"added tokens have \d+ characters"):
        Tokenizer(json.dumps(fields), tiny_config())


def tiny(**changes) -> Tokenizer:
    return Tokenizer(tiny_tokenizer_json(), tiny_config(**changes), CHAT_TEMPLATE)


def small_spm(**changes) -> Tokenizer:
    metadata = SPM | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return Tokenizer(tokenizer_json(metadata), tiny_config(bos_token_id=1))


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf) -> Tokenizer:
    checkpoint = open_checkpoint(smollm2_gguf)
    return Tokenizer(checkpoint.tokenizer_json, checkpoint.config, checkpoint.chat_template)


# Ids ------------------------------------------------------------------------------------------------------------------


def test_smollm2_ids(smollm2):
    for case in GOLDEN:
        assert smollm2.encode(case["text"], parse_special=case["parse_special"]) == case["ids"], case["text"]


def test_smollm2_round_trip(smollm2):
    for case in GOLDEN:
        assert smollm2.decode(case["ids"], skip_special=False) == case["text"]


@pytest.mark.slow
def test_smollm2_ids_of_transformers(smollm2, smollm2_gguf):
    transformers = pytest.importorskip("transformers", reason="extra oracle")
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    for case in GOLDEN:
        # Its GGUF import leaves out the cut at every digit, which shows where a digit is not ASCII; llama.cpp has it.
        if all(character.isascii() or not character.isnumeric() for character in case["text"]):
            assert smollm2.encode(case["text"], parse_special=True) == theirs(case["text"])["input_ids"]


def _vocabularies() -> Path | None:
    """The folder `vendor/llama.cpp/models` of llama-cpp-python's sdist: vocabularies with texts and their ids."""
    folder = os.environ.get("SPQT_VOCABULARIES")
    return Path(folder) if folder else None


@pytest.mark.parametrize(
    "name", ["llama-spm", "llama-bpe", "phi-3", "gpt-2", "mpt", "starcoder", "refact", "command-r", "qwen2"]
)
def test_ids_of_llama_cpp(name):
    folder = _vocabularies()
    if folder is None:
        pytest.skip("SPQT_VOCABULARIES does not name the folder of llama.cpp's ggml-vocab-*.gguf")
    path = folder / f"ggml-vocab-{name}.gguf"
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json(GgufFile.open(path).metadata))
    texts = path.with_name(path.name + ".inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = path.with_name(path.name + ".out").read_text().splitlines()
    assert len(lines) > 40
    for text, line in zip(texts, lines, strict=False):
        assert tokenizer.encode(text, add_special_tokens=False).ids == [int(token) for token in line.split()], text


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=" aabbccoé日", max_size=24))
def test_sentencepiece_merges_like_sentencepiece(text):
    assert small_spm().encode(text, add_special=False) == _by_best_score(text)


def _by_best_score(text: str) -> list[int]:
    """SentencePiece's algorithm, spelled out: join the neighbours that make the best piece, leftmost of equals."""
    ids = {token: i for i, token in enumerate(SPM_TOKENS)}
    parts = list(("▁" + text).replace(" ", "▁")) if text else []
    while True:
        joins = [(-SPM_SCORES[ids[a + b]], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ids]
        if not joins:
            break
        _, i = min(joins)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [token for part in parts for token in ([ids[part]] if part in ids else [b + 3 for b in part.encode()])]


def test_sentencepiece_merges_never_make_control_tokens():
    tokens = ["<unk>", "<s>", "<s", ">", "<", "s"]
    assert sentencepiece_merges(tokens, [2, 3, 1, 1, 1, 1], [0.0] * 6) == [("<", "s")]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, [1, 267]),  # Llama 2: BOS and a space in front unless the file says otherwise
        ({"add_bos_token": False}, [267]),
        ({"add_space_prefix": False}, [1, 260]),
        ({"add_eos_token": True}, [1, 267, 2]),
    ],
)
def test_what_a_file_puts_around_a_text(flags, expected):
    assert small_spm(**flags).encode("a") == expected


def test_bos():
    config = tiny_config(bos_token_id=1)
    for flags, expected in (({}, [1]), ({"add_bos_token": False}, []), ({"add_eos_token": True}, [1])):
        named = {f"tokenizer.ggml.{name}": value for name, value in flags.items()}
        assert Tokenizer(tokenizer_json(SPM | named), config).bos == expected
    assert tiny().bos == []


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["Ġ1234", "!!"]),
        ("smollm", ["Ġ", "1", "2", "3", "4", "!!"]),  # every digit alone
        ("qwen2", ["Ġ", "1", "2", "3", "4", "!!"]),
        ("llama-bpe", ["Ġ", "123", "4", "!!"]),  # three digits at most
        ("default", ["Ġ", "123", "4", "!!"]),
    ],
)
def test_how_families_cut_numbers(pre, expected):
    """A vocabulary that would merge the digits if they stood in one word."""
    tokens = ["Ġ", "1", "2", "3", "4", "!", "12", "123", "1234", "Ġ1234", "!!"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["1 2", "12 3", "123 4", "Ġ 1234", "! !"],
        "tokenizer.ggml.add_bos_token": False,
    }
    ids = Tokenizer(tokenizer_json(metadata), tiny_config()).encode(" 1234!!")
    assert [tokens[i] for i in ids] == expected
    # llama.cpp looks at this for SentencePiece alone; the library would put a space before each word.
    metadata["tokenizer.ggml.add_space_prefix"] = True
    assert Tokenizer(tokenizer_json(metadata), tiny_config()).encode(" 1234!!") == ids


def test_bytes_are_known_by_their_text():
    """As in llama.cpp, where a file gives tokens no types."""
    without = {name: value for name, value in SPM.items() if name != "tokenizer.ggml.token_type"}
    tokenizer = Tokenizer(tokenizer_json(without), tiny_config(bos_token_id=1))
    assert tokenizer.encode("ab q") == [1, 268, 259, 3 + ord("q")]


def test_special_tokens_only_when_asked():
    tokenizer = tiny()
    parsed = tokenizer.encode("a<|im_end|>b", parse_special=True)
    assert 2 in parsed
    typed = tokenizer.encode("a<|im_end|>b")
    assert not {0, 1, 2} & set(typed)
    assert tokenizer.decode(typed) == "a<|im_end|>b"
    assert tokenizer.encode("a<|im_end|>b", parse_special=True) == parsed  # no state is left behind
    assert 2 not in small_spm().encode("a</s>")
    assert 2 in small_spm().encode("a</s>", parse_special=True)


def test_a_saved_truncation_or_padding_does_not_matter():
    saved = tokenizers.Tokenizer.from_str(tiny_tokenizer_json())
    saved.enable_truncation(2)
    saved.enable_padding(length=50)
    assert Tokenizer(saved.to_str(), tiny_config()).encode(SENTENCES[0]) == tiny().encode(SENTENCES[0])


def test_a_token_that_the_model_lacks():
    with pytest.raises(GenerationError, match="the model knows only 50 tokens"):
        Tokenizer(tiny_tokenizer_json(), tiny_config(vocab_size=50)).encode("hello ÿ")


# Decoding -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_decode_as_the_library_does(text, skip):
    plain = tokenizers.Tokenizer.from_str(tiny_tokenizer_json())
    ids = plain.encode(text).ids
    assert tiny().decode(ids, skip_special=skip) == plain.decode(ids, skip_special_tokens=skip)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 299), max_size=20))
def test_any_ids_decode_as_the_library_does(ids):
    """Random byte tokens: mostly broken UTF-8."""
    plain = tokenizers.Tokenizer.from_str(tiny_tokenizer_json())
    ids = [i for i in ids if i < plain.get_vocab_size()]
    assert tiny().decode(ids) == plain.decode(ids)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_sentencepiece_decodes_what_it_encoded(text):
    tokenizer = small_spm()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text.replace("▁", " ")
    plain = tokenizers.Tokenizer.from_str(tokenizer_json(SPM))
    assert tokenizer.decode(ids) == plain.decode(ids)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 274), max_size=20), spm=st.booleans())
def test_stream_is_decode_in_pieces(ids, spm):
    tokenizer = small_spm() if spm else tiny()
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)
    if not spm:
        plain = tokenizers.Tokenizer.from_str(tiny_tokenizer_json())
        assert "".join(pieces).rstrip("�") == plain.decode(ids).rstrip("�")


def test_no_half_characters():
    tokenizer = tiny()
    ids = tokenizer.encode("日🎉é")
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "�" not in "".join(pieces)
    assert [piece for piece in pieces if piece] == ["日", "🎉", "é"]
    assert stream.finish() == ""
    cut = tokenizer.stream()
    assert cut.push(ids[0]) == ""
    assert cut.finish() == "�"


def test_an_answer_keeps_its_first_space():
    tokenizer = small_spm()
    ids = tokenizer.encode("ab", add_special=False)
    assert tokenizer.decode(ids) == "ab"
    stream = tokenizer.stream(continues=True)
    assert "".join(stream.push(token) for token in ids) == " ab"


def test_ids_that_only_pad_the_vocabulary_are_silent():
    assert tiny().decode([319]) == ""


@pytest.mark.parametrize("token", [-1, 320, 10**9])
def test_unknown_id(token):
    with pytest.raises(GenerationError, match=f"token id {token} is outside the vocabulary of 320"):
        tiny().decode([token])


# Chat -----------------------------------------------------------------------------------------------------------------


def test_chat():
    tokenizer = tiny()
    text = tokenizer.chat([{"role": "user", "content": "Hi"}])
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.chat([{"role": "user", "content": "Hi"}], add_generation_prompt=False).endswith("<|im_end|>\n")
    ids = tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    assert ids == tokenizer.encode(text, parse_special=True)
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 2, 1)


def test_chat_of_smollm2(smollm2):
    assert smollm2.chat([{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert smollm2.eos_ids == {0, 2, 4}  # llama.cpp's: <|im_end|>, and by their text <|endoftext|> and <reponame>


def test_chat_writes_bos_once():
    tokenizer = Tokenizer(tokenizer_json(SPM), tiny_config(bos_token_id=1), "{{ bos_token }}{{ messages[0].content }}")
    assert tokenizer.encode_chat([{"role": "user", "content": "ab"}]).count(1) == 1


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "<é>"}'),
        ("{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}", "x\n"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ bos_token }}|{{ eos_token }}|{{ unknown }}", "<|endoftext|>|<|im_end|>|"),
        ("{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}", "1"),
    ],
)
def test_what_templates_rely_on(template, expected):
    tokenizer = Tokenizer(tiny_tokenizer_json(), tiny_config(), template)
    assert tokenizer.chat([{"role": "user", "content": "<é>"}]) == expected


@pytest.mark.parametrize(
    ("template", "error", "words"),
    [
        (None, GenerationError, "no chat template"),
        ("", GenerationError, "no chat template"),
        ("{% for %}", CheckpointError, "damaged"),
        ("{{ raise_exception('only two roles') }}", GenerationError, "only two roles"),
        ("{{ ''.__class__.__mro__ }}", GenerationError, "unsafe"),
        ("{{ messages.append(1) }}", GenerationError, "unsafe"),
        ("{{ messages[0].content + 1 }}", GenerationError, "does not take"),
        ("{{ (1).__class__.__base__.__subclasses__() }}", GenerationError, "unsafe"),
    ],
)
def test_templates_that_fail(template, error, words):
    with pytest.raises(error, match=words):
        Tokenizer(tiny_tokenizer_json(), tiny_config(), template).chat(MESSAGES)


def test_documents_of_a_conversation():
    template = "{% for d in documents or [] %}{{ d.title }}={{ d.text }};{% endfor %}{{ messages[0].content }}"
    tokenizer = Tokenizer(tiny_tokenizer_json(), tiny_config(), template)
    text = tokenizer.chat(MESSAGES, documents=[{"title": "t", "text": "x"}])
    assert text == "t=x;" + tokenizer.chat(MESSAGES)
    assert tokenizer.encode_chat(MESSAGES, documents=[{"title": "t", "text": "x"}]) == tokenizer.encode(
        text, parse_special=True, add_special=False
    )
    with pytest.raises(GenerationError, match=r"a document is an object .* got 'a text'"):
        tokenizer.chat(MESSAGES, documents=["a text"])


@pytest.mark.parametrize("message", ["hello", {"role": "user"}, {"content": "x"}])
def test_messages_that_are_none(message):
    with pytest.raises(GenerationError, match="needs 'role' and 'content'"):
        tiny().chat([message])


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("{}", "cannot be read"),
        ('{"model": 1}', "cannot be read"),
        (
            tokenizers.Tokenizer(tokenizers.models.BPE()).to_str(),
            r"decoder \(none\) is not supported",
        ),
    ],
)
def test_damaged_json(text, words):
    with pytest.raises(CheckpointError, match=words):
        Tokenizer(text, tiny_config())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "bert"}, "tokenizer 'bert' is not supported"),
        ({"model": None}, "tokenizer None"),
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": [*SPM_TOKENS[:-1], "a"]}, "the same token twice"),
        ({"token_type": [1, 2]}, "has 2 entries, expected 275"),
        ({"scores": None}, "scores is missing"),
        ({"scores": [0.0]}, "scores is missing or of another length"),
        ({"bos_token_id": 9000}, "bos_token_id is 9000"),
        ({"model": "gpt2", "pre": "superbpe"}, "pre 'superbpe' is not supported"),
        ({"model": "gpt2", "pre": "gpt-2"}, "merges is missing"),
        ({"model": "gpt2", "merges": ["a zz"]}, "do not fit"),
    ],
)
def test_gguf_tokenizers_refused(changes, words):
    with pytest.raises(CheckpointError) as caught:
        tokenizer_json(SPM | {f"tokenizer.ggml.{name}": value for name, value in changes.items()})
    assert words in str(caught.value)


def test_empty_tokens_are_holes():
    """Several ids whose token is the empty string: no text has them, and they have no text."""
    tokens = [*SPM_TOKENS, "", ""]
    holes = {"tokens": tokens, "token_type": [*SPM_TYPES, 5, 1], "scores": [*SPM_SCORES, 0.0, 0.0]}
    tokenizer = small_spm(**holes)
    assert tokenizer.encode("ab") == small_spm().encode("ab")
    assert tokenizer.decode([tokens.index("ab"), len(tokens) - 1, len(tokens) - 2, tokens.index("c")]) == "abc"


def test_special_ids_of_minus_one_are_none():
    assert small_spm(bos_token_id=0xFFFFFFFF).encode("a") == [267]
    assert declared_ends(SPM) == (2,)
    assert declared_ends(SPM | {"tokenizer.ggml.eos_token_id": 0xFFFFFFFF, "tokenizer.ggml.eot_token_id": 1}) == (1,)
    without = {name: value for name, value in SPM.items() if "token_id" not in name}
    assert declared_ends(without) == (2,)  # SentencePiece's own, as llama.cpp has them
    assert Tokenizer(tokenizer_json(without), tiny_config(bos_token_id=1)).encode("a") == [1, 267]


def test_added_tokens_are_their_own_text():
    """The letters stand for control bytes in the byte alphabet; llama.cpp writes user-defined tokens as they are."""
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "čaj", "Ġ»", "Ġ"],
        "tokenizer.ggml.token_type": [1, 4, 4, 1],
        "tokenizer.ggml.merges": [],
    }
    tokenizer = Tokenizer(tokenizer_json(metadata), tiny_config())
    assert tokenizer.decode([0, 1, 2, 3, 0]) == "ačajĠ» a"


def test_pieces_too_long_to_split():
    tokens = [*SPM_TOKENS, "a" * 300]
    with pytest.raises(CheckpointError, match="has 300 characters"):
        sentencepiece_merges(tokens, [*SPM_TYPES, 1], [*SPM_SCORES, 0.0])


def test_end_of_turn():
    metadata = {
        "tokenizer.ggml.tokens": ["<s>", "</s>", "<|eot_id|>", "<|im_end|>"],
        "tokenizer.ggml.token_type": [3, 3, 3, 1],
        "tokenizer.ggml.eos_token_id": 1,
    }
    assert declared_ends(metadata) == (1,)
    assert declared_ends(metadata | {"tokenizer.ggml.eot_token_id": 0}) == (1, 0)
    assert declared_ends(metadata | {"tokenizer.ggml.eos_token_id": 0xFFFFFFFF}) == ()
    assert declared_ends({}) == ()
    # llama.cpp knows some by their text, whatever their type.
    assert end_ids(metadata) == (1, 2, 3)


def _sequence(of: str, parts: list) -> dict:
    return {"type": "Sequence", of: parts}


def _table(longest: int) -> str:
    """SentencePiece's table of characters with an empty trie, and a text of this length."""
    return base64.b64encode(bytes(4) + b"x" * longest + b"\0yz\0").decode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        # The library counts from 0 to the largest id when it saves: 8 GB and 17 s.
        (lambda f: f["model"]["vocab"].update({"x y": 2**31}), "the id 2147483648"),
        (lambda f: f["added_tokens"][0].update({"id": 2**31}), "the id 2147483648"),
        (
            lambda f: f.update(
                normalizer={
                    "type": "Sequence",
                    "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
                }
            ),
            "times longer",
        ),
        # Each doubles what is beyond ASCII.
        (lambda f: f.update(pre_tokenizer=_sequence("pretokenizers", [f["pre_tokenizer"]] * 300)), "times longer"),
        (lambda f: f.update(normalizer=_sequence("normalizers", [{"type": "ByteLevel"}] * 30)), "times longer"),
        (lambda f: f.update(normalizer={"type": "Prepend", "prepend": "a" * 1000}), "times longer"),
        (lambda f: f.update(normalizer={"type": "Precompiled", "precompiled_charsmap": _table(1000)}), "times longer"),
    ],
)
def test_a_tokenizer_that_takes_any_amount_of_memory(change, words):
    fields = json.loads(tiny_tokenizer_json())
    change(fields)
    with pytest.raises(CheckpointError, match=words):
        Tokenizer(json.dumps(fields), tiny_config())


def test_a_panic_of_the_library_is_an_error():
    """Its regex engine gives up, and PyO3 raises what is no Exception."""
    fields = json.loads(tiny_tokenizer_json())
    split = {"type": "Split", "pattern": {"Regex": "(a|a)+$"}, "behavior": "Isolated", "invert": False}
    fields["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, fields["pre_tokenizer"]]}
    with pytest.raises((CheckpointError, GenerationError)):
        Tokenizer(json.dumps(fields), tiny_config()).encode("a" * 60 + "b")
