"""How byte-level BPE cuts a text into words before merging: `tokenizer.ggml.pre` of a GGUF file -> patterns.

Names, patterns and flags are llama.cpp's (`llama-vocab.cpp`), so that ids are. Each pattern cuts the pieces that the
one before left; what no pattern matches stays a piece.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenizers import Regex, pre_tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_SIGNS}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
# A word of letters without a-z, then without A-Z; which of the two may be empty.
_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_PATH_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_PATH_SIGNS}|{_SPACES}"
_GPT4O = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
    rf"|{_PATH_SIGNS}|{_SPACES}"
)
_SEED_CODER = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_EAST_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, r"\p{N}")
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# What llama.cpp does with a file that names no family.
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")


@dataclass(frozen=True)
class Words:
    """A way of cutting. `whole_words`: a word that is a token is taken as it is, even where merging would not arrive at
    it. `adds_bos`: a text begins with BOS where the file does not say. `normalized`: text is brought to NFC first.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    adds_bos: bool = False
    normalized: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The cuts, then the map from bytes to characters."""
        cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_GPT2_WORDS, _DIGITS, _LLAMA3_WORDS = Words((_GPT2,)), Words((r"\p{N}", _GPT2)), Words((_LLAMA3,))
_WHOLE_LLAMA3 = replace(_LLAMA3_WORDS, whole_words=True, adds_bos=True)
_QWEN2_WORDS = Words((_QWEN2,), normalized=True)
_BLOOM_WORDS = Words((_BLOOM,))

WORDS: dict[str, Words] = {
    "default": Words(_DEFAULT),
    **dict.fromkeys(
        (
            "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "mellum",
            "a.x-4.0",
        ),
        _GPT2_WORDS,
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), _DIGITS
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), _WHOLE_LLAMA3
    ),
    **dict.fromkeys(("smaug-bpe", "dbrx", "glm4", "chatglm-bpe"), _LLAMA3_WORDS),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "kormo"), _QWEN2_WORDS),
    **dict.fromkeys(("stablelm2", "hunyuan", "solar-open", "grok-2"), replace(_QWEN2_WORDS, normalized=False)),
    "qwen35": Words((_QWEN35,), normalized=True),
    "tekken": Words((_TEKKEN,), whole_words=True, adds_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), Words((_GPT4O,))),
    "seed-coder": Words((_SEED_CODER,)),
    "deepseek-coder": Words(_DEEPSEEK_CODER),
    "deepseek-v3": Words(_DEEPSEEK_V3),
    "hunyuan-dense": Words(_DEEPSEEK_V3),
    "falcon": Words((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "viking": Words((_BLOOM, r"\p{N}")),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), _BLOOM_WORDS),
}  # fmt: skip
