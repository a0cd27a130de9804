"""The tokenizer inside a GGUF file, rebuilt as a `tokenizers` JSON that gives the ids of the original.

Two kinds: `gpt2` (byte-level BPE; `tokenizer.ggml.pre` names the way text is cut into words) and `llama` (SentencePiece
BPE, which becomes merges with byte fallback).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from spqt_ti.errors import CheckpointError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # tokenizer.ggml.token_type
# End a turn even where an old file names only the end of a document.
_END_OF_TURN = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>")

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3_WORDS = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
# tokenizer.ggml.pre -> the family whose way of cutting words it uses.
_FAMILIES = {
    "smollm": ("smollm", "starcoder", "refact", "command-r"),
    "llama3": ("llama-bpe", "llama3", "llama-v3", "falcon3"),
    "qwen2": ("qwen2",),
    "gpt-2": ("gpt-2", "mpt"),
    "default": ("default",),
}
_FAMILY_OF = {pre: family for family, names in _FAMILIES.items() for pre in names}


def tokenizer_json(metadata: Mapping[str, Any]) -> str:
    """JSON of a `tokenizers.Tokenizer` from the `tokenizer.ggml.*` keys; CheckpointError where that cannot be exact."""
    tokens = _tokens(metadata)
    kind = metadata.get("tokenizer.ggml.model")
    types = _types(metadata, len(tokens))
    if kind == "gpt2":
        tokenizer, add_bos = _byte_level(metadata, tokens)
    elif kind == "llama":
        tokenizer, add_bos = _sentencepiece(metadata, tokens, types), True
    else:
        raise CheckpointError(f"tokenizer {kind!r} is not supported (only gpt2 and llama)")
    _add_special(tokenizer, tokens, types)
    _add_post_processor(tokenizer, metadata, tokens, add_bos)
    return str(tokenizer.to_str())


def end_of_turn_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end generation: eos, end of turn and end of message where the file has them."""
    ids = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    types = metadata.get("tokenizer.ggml.token_type")
    for name in _END_OF_TURN:
        if types is not None and name in tokens and types[tokens.index(name)] == _CONTROL:
            ids.append(tokens.index(name))
    return tuple(dict.fromkeys(int(i) for i in ids if i is not None))


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise CheckpointError("metadata key tokenizer.ggml.tokens is missing: the file has no tokenizer")
    if len(set(tokens)) != len(tokens):
        raise CheckpointError("tokenizer.ggml.tokens holds the same token twice")
    return tokens


def _types(metadata: Mapping[str, Any], count: int) -> list[int]:
    types = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        return [_NORMAL] * count
    if len(types) != count:
        raise CheckpointError(f"tokenizer.ggml.token_type has {len(types)} entries, expected {count}")
    return [int(t) for t in types]


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> tuple[Tokenizer, bool]:
    """Byte-level BPE, and whether this family begins a text with BOS when the file does not say."""
    pre = metadata.get("tokenizer.ggml.pre", "default")
    family = _FAMILY_OF.get(pre)
    if family is None:
        raise CheckpointError(f"tokenizer.ggml.pre {pre!r} is not supported (only {', '.join(sorted(_FAMILY_OF))})")
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise CheckpointError("metadata key tokenizer.ggml.merges is missing")
    pairs = [(m[:cut], m[cut + 1 :]) for m in merges for cut in [m.find(" ", 1)]]
    # Llama 3 takes a word that is a token as it is, even where merging would not arrive at it.
    model = _bpe(tokens, pairs, ignore_merges=family == "llama3")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _words(family, bool(metadata.get("tokenizer.ggml.add_space_prefix", False)))
    tokenizer.decoder = decoders.ByteLevel()
    if family == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer, family == "llama3"


def _words(family: str, space_prefix: bool) -> pre_tokenizers.PreTokenizer:
    """How text is cut into words before merging, ending in the map from bytes to characters."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=space_prefix, use_regex=True)
    if family == "gpt-2":
        return gpt2
    if family == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    patterns = {"llama3": [_LLAMA3_WORDS], "qwen2": [_QWEN2_WORDS], "default": _DEFAULT_CUTS}[family]
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    plain = pre_tokenizers.ByteLevel(add_prefix_space=space_prefix, use_regex=False)
    return pre_tokenizers.Sequence([*cuts, plain])


# What llama.cpp does with a file that names no family: each pattern cuts the pieces that the one before left.
_DEFAULT_CUTS = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
]


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> Tokenizer:
    """SentencePiece's BPE, which merges the pair whose result scores best, as ranked merges with byte fallback."""
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise CheckpointError("metadata key tokenizer.ggml.scores is missing or of another length than the tokens")
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    merges = sentencepiece_merges(tokens, types, [float(score) for score in scores])
    tokenizer = Tokenizer(_bpe(tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=_BYTE in types))
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces] if prefix else [spaces])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def sentencepiece_merges(tokens: list[str], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to split a piece into two pieces, best score of the whole first, then by id of whole and of parts."""
    ids = {token: i for i, token in enumerate(tokens) if types[i] in (_NORMAL, _USER_DEFINED)}
    ranked = []
    for token, i in ids.items():
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[i], i, left, right))
    ranked.sort()
    return [(tokens[left], tokens[right]) for _, _, left, right in ranked]


def _bpe(tokens: list[str], merges: list[tuple[str, str]], **options: Any) -> models.BPE:
    try:
        return models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, **options)
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"the tokenizer's merges do not fit its tokens ({error})") from error


def _add_special(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Tokens that are found in text before it is cut: control tokens (special) and user-defined ones."""
    for kind, special in ((_CONTROL, True), (_UNKNOWN, True), (_USER_DEFINED, False)):
        added = [
            AddedToken(token, normalized=False, special=special)
            for token, t in zip(tokens, types, strict=True)
            if t == kind
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)


def _add_post_processor(tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: list[str], add_bos: bool) -> None:
    """BOS before and EOS after a text, as the file says."""
    parts, special = ["$A"], []
    flags = {"bos": (add_bos, 0), "eos": (False, 1)}
    for name, (default, place) in flags.items():
        if not metadata.get(f"tokenizer.ggml.add_{name}_token", default):
            continue
        token_id = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if token_id is None or not 0 <= token_id < len(tokens):
            raise CheckpointError(f"tokenizer.ggml.{name}_token_id is {token_id}, expected one of {len(tokens)} tokens")
        parts.insert(0 if place == 0 else len(parts), tokens[token_id])
        special.append((tokens[token_id], token_id))
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(single=parts, special_tokens=special)
