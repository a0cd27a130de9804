"""Patterns of tokenizers: those of public models are taken, those that take any time are refused, and between them a
text is refused before it takes long. No clock is read: steps are counted by a small matcher.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_config, tiny_tokenizer_json

from spqt_ti.errors import CheckpointError, GenerationError
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.sources.gguf_words import WORDS
from spqt_ti.sources.regex_cost import Pattern, PatternCosts
from spqt_ti.sources.regex_shape import UnboundedPatternError, shape_of

_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s|%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
# As public models' tokenizer.json have them.
PUBLIC = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "clip": r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "llama3, granite, falcon3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2, qwen3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-4": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"
    r"\s*[\r\n]|\s+(?!\S)|\s",
    "gpt-4o, gpt-oss, phi-4-mini, llama4": _CASED % (_ENDING, _ENDING, r"\p{N}{1,3}"),
    "mistral nemo, ministral": _CASED % ("", "", r"\p{N}"),
    "kimi k2": r"[\p{Han}]+|" + _CASED.replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]") % (_ENDING, _ENDING, r"\p{N}{1,3}"),
    "bloom": " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+",
    "falcon, deepseek-coder": "[0-9][0-9][0-9]",
    "deepseek-llm, newlines": r"[\r\n]",
    "deepseek-llm, letters (their class cut short)": "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u0370-\u0373]+",
    "deepseek-llm, signs (likewise)": "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    "deepseek-llm, ends": r"\s+$",
    "deepseek-llm, Chinese": "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    "deepseek-llm, digits": r"\p{N}+",
    "deepseek-v3": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "superbpe, olmo2 digits": r"(?=(\d{3})+(?!\d))",
    "xlm-roberta, gemma": " {2,}",
    "chemistry": r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|"
    r"\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])",
    "code": r"(?<=[a-z])(?=[A-Z])|_|\d+|\W",
}
_TEXTS = ("the quick fox  jumps\n\n over 12345 dogs' tails ", "x" + " " * 4000 + "y", "日本" * 2000, "é" * 3000 + "!")


def _with_split(regex: str) -> str:
    fields = json.loads(tiny_tokenizer_json())
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    fields["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, fields["pre_tokenizer"]]}
    return json.dumps(fields)


@pytest.mark.parametrize("regex", [*PUBLIC.values(), *{p for words in WORDS.values() for p in words.patterns}])
def test_patterns_of_public_tokenizers_are_taken(regex):
    costs = PatternCosts.of({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": regex}}}, 1)
    tokenizer = Tokenizer(_with_split(regex), tiny_config())
    for text in _TEXTS:
        costs.check(tokenizer._tokenizer, text)


@pytest.mark.parametrize("family", ["gpt2", "llama3, granite, falcon3", "gpt-4", "gpt-4o, gpt-oss, phi-4-mini, llama4"])
def test_their_time_grows_with_the_length_alone(family):
    costs = PatternCosts.of({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": PUBLIC[family]}}}, 1)
    assert not costs.patterns


@pytest.mark.parametrize(
    ("regex", "why"),
    [
        ("(a|a)+$", "several ways"), ("(a|aa)+$", "several ways"), ("(a*)*b", "in a repetition"),
        ("(a+)+$", "in a repetition"), ("([a-zA-Z]+)*$", "in a repetition"), ("(x+x+)+y", "in a repetition"),
        ("(.*a){20}", "in a repetition"), ("(?:a?){40}a{40}", "alternatives"), (r"(\w+)\s\1", "back-reference"),
        (r"(?<n>a+)\k<n>", "back-reference"), (r"(?<n>a\g<n>?b)", "call"), ("(?<=a+)b", "look-behind"),
        ("(?<!a*)b", "look-behind"), ("a{1,3}+b", "several ways"), ("((a{99}){99})", "written out"),
        ("a{9999999}", "six digits"), ("(", "without an end"), ("[a", "without an end"), ("a)", "unpaired"),
        ("*", "of nothing"), ("(?~a)", "the group"), ("(?x: a # b\n)", "the group"), (r"\X+", "grapheme"),
        ("(" * 60 + ")" * 60, "deeper"), ("a" * 20001, "20001 characters"), ("(a||b)*c", "several ways"),
        ("|".join(f"{c}*x" for c in map(chr, range(0x4E00, 0x5100))), "alternatives"), ("a**", "in a repetition"),
        (r"^(([a-z])+.)+[A-Z]([a-z])+$", "in a repetition"), ("(?i)(?:a|A)+b", "several ways"), ("a\\", "backslash"),
    ],
)  # fmt: skip
def test_patterns_that_may_take_any_time_are_refused(regex, why):
    with pytest.raises(CheckpointError, match=why):
        Tokenizer(_with_split(regex), tiny_config())


@pytest.mark.parametrize(
    ("regex", "text"),
    [
        (r"\s+$", " " * 200_000 + "x"), (r"a+(?!a)b", "a" * 200_000), (r".*.*=.*;", "=" * 20_000),
        (r"\d+\d+\d+x", "1" * 5_000), (r"(?i)a+b+c", "aA" * 20_000), (r"(?:ab)+\z", "ab" * 100_000 + "c"),
        (r"x(?=[^y]*y)", "x" * 100_000), (r"a{0,999}(?=b)", "a" * 100_000), (r"[[:space:]]+$", "\n" * 99_999 + "x"),
    ],
)  # fmt: skip
def test_a_text_that_would_take_long_is_refused_before(regex, text):
    tokenizer = Tokenizer(_with_split(regex), tiny_config())
    with pytest.raises(GenerationError, match="characters in a row"):
        tokenizer.encode(text)
    assert tokenizer.encode(text[:100])


@pytest.mark.parametrize(
    "before", [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}, None]
)
def test_what_stands_before_a_pattern_counts(before):
    """Behind a step that changes the text its stretches are not known: its whole length is taken, twice doubled."""
    fields = json.loads(_with_split(r"\s+$"))
    if before:
        fields["pre_tokenizer"]["pretokenizers"].insert(0, before)
    tokenizer = Tokenizer(json.dumps(fields), tiny_config())
    text = "word " * 8000
    if before is None:
        assert tokenizer.encode(text)
        return
    with pytest.raises(GenerationError, match="160000 characters in a row"):
        tokenizer.encode(text)


def test_added_tokens_through_a_normalizers_pattern():
    """The library normalizes them when it reads the file."""
    fields = json.loads(tiny_tokenizer_json())
    fields["normalizer"] = {"type": "Replace", "pattern": {"Regex": r"a+(?!a)b"}, "content": ""}
    assert Tokenizer(json.dumps(fields), tiny_config()).encode("the fox")
    entry = fields["added_tokens"][0] | {"id": len(fields["model"]["vocab"]), "content": "a" * 100_000}
    fields["added_tokens"].append(entry | {"normalized": True})
    with pytest.raises(CheckpointError, match="added tokens, of up to 200000 characters"):
        Tokenizer(json.dumps(fields), tiny_config())


# A pattern as a tree: a text, ("seq"|"alt", parts), or ("rep", part, least, most or None).
_TREES = st.recursive(
    st.sampled_from(["a", "b", "[ab]", "."]),
    lambda inner: (
        st.tuples(st.sampled_from(["seq", "alt"]), st.lists(inner, min_size=1, max_size=3))
        | st.tuples(st.just("rep"), inner, st.sampled_from([0, 1, 2]), st.sampled_from([None, None, 2, 30]))
    ),
    max_leaves=5,
)


def _written(tree) -> str:
    if isinstance(tree, str):
        return tree
    if tree[0] == "rep":
        most = "" if tree[3] is None else tree[3]
        return f"(?:{_written(tree[1])}){{{tree[2]},{most}}}"
    return "(?:" + ("|" if tree[0] == "alt" else "").join(map(_written, tree[1])) + ")"


def _ends(tree, text: str, start: int, steps: list[int]) -> Iterator[int]:
    """Where a match may end, in the order of a backtracking matcher; counts every character that is compared."""
    if isinstance(tree, str):
        steps[0] += 1
        if start < len(text) and (tree in ("[ab]", ".") or text[start] == tree):
            yield start + 1
    elif tree[0] == "alt":
        for part in tree[1]:
            yield from _ends(part, text, start, steps)
    elif tree[0] == "seq":
        yield from _in_turn(tree[1], text, start, steps)
    else:
        yield from _repeats(tree, text, start, 0, steps)


def _in_turn(parts, text, start, steps):
    if not parts:
        yield start
        return
    for middle in _ends(parts[0], text, start, steps):
        yield from _in_turn(parts[1:], text, middle, steps)


def _repeats(tree, text, start, count, steps):
    _, part, least, most = tree
    if most is None or count < most:
        for middle in _ends(part, text, start, steps):
            if middle > start:
                yield from _repeats(tree, text, middle, count + 1, steps)
    if count >= least:
        yield start


@settings(max_examples=300, deadline=None)
@given(_TREES, st.text("aab", max_size=24).map(lambda some: some + "c"))
def test_the_estimate_is_a_bound(tree, text):
    """Steps of a matcher that goes on to the end of every path, at every start, against the estimate."""
    regex = _written(tree) + "\\z"
    try:
        shape = shape_of(regex)
    except UnboundedPatternError:
        return
    retried = tuple(path for path in shape.paths if path.retried)
    estimate = Pattern(regex, False, True, retried).steps(text)[0] if retried else 0
    steps = [0]
    for start in range(len(text)):
        for _ in _ends(tree, text, start, steps):
            pass
    written = sum(character in "ab." for character in regex)
    assert steps[0] <= 4 * written * (estimate + shape.ways * (len(text) + 1))
