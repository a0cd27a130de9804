"""Answers of a given form: which tokens are left, that the best or drawn of these is taken, and what is refused."""

from __future__ import annotations

import itertools
import json

import numpy as np
import plain_generation
import pytest
import tiny_containers
import tokenizers

pytest.importorskip("llguidance", reason="llguidance is not installed: pip install '.[constrained]'")

from spqt_ti.api import Model
from spqt_ti.errors import GenerationError
from spqt_ti.generation.constraint import LONGEST, Constraint, Vocabulary
from spqt_ti.generation.sampling import Sampling
from spqt_ti.generation.tokenizer import Tokenizer

PROMPT = "The quick brown fox"
# At each place two bytes may follow. Where only one may, the library takes the tokenizer's own way to write it.
WORDS = tuple(map("".join, itertools.product("tl", "ha", "ez", " y")))
GRAMMAR = "start: " + " | ".join(json.dumps(word) for word in WORDS)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 9}, "b": {"enum": ["x", "yes"]}, "c": {"type": "boolean"}},
    "required": ["a", "b", "c"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(tiny_containers.container("gqa"), tiny_containers.llama("gqa"))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    "sampling",
    [Sampling(), *(Sampling(3.0, seed=seed, top_k=40, top_p=0.99) for seed in range(5))],
    ids=lambda sampling: f"{sampling.temperature:g}-{sampling.seed}",
)
def test_tokens_are_those_of_the_masked_logits(model, sampling, sparse):
    model.llama.thresholds[:] = 0.3 if sparse else 0
    logits = plain_generation.Logits(model.llama, model.tokenizer.encode(PROMPT))
    allowed = plain_generation.one_of(WORDS, model.tokenizer, model.container.config.vocab_size)
    chain = {"temperature": sampling.temperature, "top_k": sampling.top_k or 10**6, "top_p": sampling.top_p or 1.0}
    expected = plain_generation.sample(logits, 10, model.tokenizer.eos_ids, sampling.seed, allowed, **chain)
    found = model.generate(PROMPT, sampling=sampling, constraint=Constraint("lark", GRAMMAR))
    model.llama.thresholds[:] = 0
    assert found.token_ids == expected
    assert found.text in WORDS
    assert found.finish_reason == "stop"


@pytest.mark.parametrize("seed", range(4))
def test_json_of_a_schema(model, seed):
    found = model.generate(
        PROMPT, constraint=Constraint.json_schema(SCHEMA), temperature=2.0, seed=seed, max_new_tokens=45
    )
    value = json.loads(found.text)
    assert found.text == json.dumps(value)
    assert list(value) == ["a", "b", "c"]
    assert isinstance(value["a"], int)
    assert value["a"] <= 9
    assert value["b"] in ("x", "yes")
    assert isinstance(value["c"], bool)


def test_white_space_where_a_schema_allows_it(model):
    flexible = {**SCHEMA, "x-guidance": {"whitespace_flexible": True, "whitespace_pattern": "\n"}}
    matcher = model.matcher(Constraint.json_schema(flexible))
    for character in "{\n":
        (token,) = model.tokenizer.encode(character, add_special=False)
        assert matcher.allowed()[token]
        matcher.take(token)


def test_a_regular_expression_matches_the_whole_answer(model):
    text = model.generate(PROMPT, constraint=Constraint("regex", r"[ab]{3}-[0-9]{2}"), temperature=1.0).text
    assert len(text) == 6
    assert set(text[:3]) <= set("ab")
    assert text[3] == "-"
    assert text[4:].isdecimal()


def test_gbnf(model):
    constraint = Constraint("gbnf", 'root ::= "x" pair\npair ::= [0-4] [5-9]')
    text = model.generate(PROMPT, constraint=constraint, temperature=1.0).text
    assert text[0] == "x"
    assert text[1] in "01234"
    assert text[2] in "56789"


def test_penalties_and_biases_do_not_bring_back_what_is_forbidden(model):
    forbidden = model.tokenizer.encode("q", add_special=False)[0]
    asked = {"logit_bias": {forbidden: 1e6}, "repetition_penalty": 0.1, "presence_penalty": -5.0, "typical_p": 0.9}
    found = model.generate(PROMPT, constraint=Constraint("lark", GRAMMAR), temperature=1.0, **asked)
    assert found.text in WORDS


def test_a_stop_string_ends_it_as_well(model):
    whole = model.generate(PROMPT, constraint=Constraint("regex", "[a-f]{20}")).text
    cut = model.generate(PROMPT, constraint=Constraint("regex", "[a-f]{20}"), stop=whole[3:6]).text
    assert cut == whole[: whole.find(whole[3:6])]


def test_a_cut_off_answer_may_go_on(model):
    found = model.generate(PROMPT, constraint=Constraint("regex", "[a-f]{20}"), max_new_tokens=3)
    assert found.finish_reason == "length"
    assert len(found.token_ids) == 3


def test_one_after_another_is_the_same(model):
    """The library's state is the answer's own."""
    constraint = Constraint("lark", GRAMMAR)
    first = [model.generate(PROMPT, constraint=constraint, temperature=2.0, seed=seed).text for seed in (1, 2, 1)]
    assert first[0] == first[2]


def test_sentencepiece():
    """Its texts begin with a space that is no byte of the answer; bytes are tokens of their own."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    pieces += [("▁", -2.0), ("▁yes", -1.0), ("yes", -1.5), ("no", -1.5)]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 0, byte_fallback=True))
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    made.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    made.add_special_tokens(["<s>", "</s>", "<unk>"])
    config = tiny_containers.container("gqa").config
    vocabulary = Vocabulary(Tokenizer(made.to_str(), config), config.vocab_size)
    matcher = vocabulary.matcher(Constraint("regex", "yes|noé"))
    allowed = {vocabulary.tokens[token] for token in np.flatnonzero(matcher.allowed())}
    assert allowed == {b"y", b"n", b"yes", b"no"}
    for token in (vocabulary.tokens.index(b"no"), 3 + 0xC3, 3 + 0xA9):
        assert not matcher.over
        matcher.take(token)
    assert matcher.over


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "the JSON schema is no JSON object: not valid JSON"),
        ("[1]", "expected a JSON object, found a list"),
        ({"type": "foo"}, "the JSON schema cannot be followed: Invalid type: foo"),
        ({"not": {"type": "string"}}, r'Unimplemented keys: \["not"\]'),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"$ref": "file:///etc/hostname"}, "retrieving it failed"),
        ({"enum": []}, "Unsatisfiable"),
        ({"enum": ["x" * LONGEST]}, "bytes, of at most 65536"),
        ({"a": object()}, "is no JSON object"),
    ],
    ids=str,
)
def test_schemas_that_are_refused(schema, message):
    with pytest.raises(GenerationError, match=message):
        Constraint.json_schema(schema)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("lark", "start: nothing", "the grammar cannot be followed"),
        ("lark", "", "the grammar cannot be followed"),
        ("gbnf", "root ::= (", "the grammar cannot be followed"),
        ("regex", "(", "the expression cannot be followed"),
        ("xml", "<a/>", "a constraint is one of json_schema, lark, gbnf, regex, not 'xml'"),
        ("regex", 3, "the expression must be a str, not int"),
    ],
)
def test_grammars_that_are_refused(kind, text, message):
    with pytest.raises(GenerationError, match=message):
        Constraint(kind, text)


@pytest.mark.parametrize("depth", [12, 200])
def test_schemas_that_grow_without_bound_are_refused_or_harmless(model, depth):
    """Each name is written twice by the one before: 2 ** depth of them, or as many alternatives."""
    alternatives = [{"anyOf": [{"properties": {f"a{i}": {"const": 1}}}, {"required": [f"b{i}"]}]} for i in range(depth)]
    chain = {f"d{i}": {"allOf": 2 * [{"$ref": f"#/$defs/d{i + 1}"}]} for i in range(depth)}
    chain[f"d{depth}"] = {"type": "boolean"}
    for schema in ({"allOf": alternatives}, {"$defs": chain, "$ref": "#/$defs/d0"}):
        try:
            constraint = Constraint.json_schema(schema)
        except GenerationError:
            continue
        assert model.generate(PROMPT, constraint=constraint, max_new_tokens=4).token_ids


def test_a_constraint_is_made_before(model):
    with pytest.raises(GenerationError, match="constraint must be a Constraint, not dict"):
        model.generate(PROMPT, constraint=SCHEMA)


@pytest.mark.parametrize("number", [-(2**63), 2**63 - 1, -9.3e18])
@pytest.mark.parametrize("key", ["enum", "const", "minimum"])
def test_numbers_that_would_end_the_process(key, number):
    """llguidance overflows its stack on -2^63."""
    schema = {"type": "object", "properties": {"a": {key: [number] if key == "enum" else number}}}
    with pytest.raises(GenerationError, match="has the number"):
        Constraint.json_schema(schema)
