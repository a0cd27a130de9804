"""The tokenizer inside a GGUF file, rebuilt as a `tokenizers` JSON that gives llama.cpp's ids.

Two kinds: `gpt2` (byte-level BPE; `tokenizer.ggml.pre` names the way text is cut into words) and `llama` (SentencePiece
BPE, which becomes merges with byte fallback).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from spqt_ti.errors import CheckpointError
from spqt_ti.sources.gguf_metadata import special_token
from spqt_ti.sources.gguf_words import WORDS
from spqt_ti.sources.token_roles import with_roles
from spqt_ti.sources.tokenizers_library import library_errors

_LOG = logging.getLogger(__name__)
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # tokenizer.ggml.token_type
_LONGEST_PIECE = 256  # characters: SentencePiece's own default is 16, and ways to split grow with the square
# llama.cpp's tokens that end a text wherever a vocabulary has them, whatever their type.
_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend▁of▁sentence\uff5c>", "[e~[",
)  # fmt: skip
# Of code models: padding, the next repository and the next file end a text as well. The first that is there counts.
_CODE_ENDS = (
    ("fim_pad", ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]")),
    ("fim_rep", ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")),
    ("fim_sep", ("<|file_sep|>",)),
)
_CODE_PARTS = (
    ("fim_pre", ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>", "▁<PRE>", "<|code_prefix|>", "<|prefix|>")),
    ("fim_suf", ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>", "▁<SUF>", "<|code_suffix|>", "<|suffix|>")),
    ("fim_mid", ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "▁<MID>", "<|code_middle|>", "<|middle|>")),
)
_ROLES = {
    "bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token",
    "seperator": "sep_token", "mask": "mask_token", "cls": "cls_token",
}  # fmt: skip
_SENTENCEPIECE_DEFAULTS = {"bos": 1, "eos": 2, "unknown": 0}


def tokenizer_json(metadata: Mapping[str, Any]) -> str:
    """JSON of a `tokenizers.Tokenizer` from the `tokenizer.ggml.*` keys; CheckpointError where that cannot be exact."""
    tokens = _tokens(metadata)
    kind = metadata.get("tokenizer.ggml.model")
    types = _types(metadata, len(tokens))
    ends = end_ids(metadata)
    for token in _control_by_text(metadata, tokens):
        types[token] = _CONTROL
    special = {name: _special(metadata, name, kind, len(tokens)) for name in _ROLES}
    if kind not in ("gpt2", "llama"):
        raise CheckpointError(f"tokenizer {kind!r:.80} is not supported (only gpt2 and llama)")
    with library_errors(CheckpointError, "the tokenizer cannot be rebuilt"):
        if kind == "gpt2":
            tokenizer, add_bos = _byte_level(metadata, tokens)
        else:
            tokenizer, add_bos = _sentencepiece(metadata, tokens, types), True
        _add_special(tokenizer, tokens, types)
        _add_post_processor(tokenizer, metadata, tokens, add_bos, special)
        text = str(tokenizer.to_str())
    roles = {_ROLES[name]: tokens[token] for name, token in special.items() if token is not None}
    return with_roles(text, roles, {tokens[token] for token in ends})


def declared_ends(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that the file names as ends: eos, end of turn, end of message."""
    ids = [special_token(metadata, name) for name in ("eos", "eot", "eom")]
    if metadata.get("tokenizer.ggml.eos_token_id") is None and metadata.get("tokenizer.ggml.model") == "llama":
        ids[0] = _SENTENCEPIECE_DEFAULTS["eos"]
    return tuple(dict.fromkeys(token for token in ids if token is not None))


def end_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Every id at which llama.cpp ends a text: the declared ones, and those that it knows by their text."""
    tokens = _tokens(metadata)
    ids = {token: i for i, token in enumerate(tokens) if token}
    found = [token for token in declared_ends(metadata) if token < len(tokens)]
    for name, texts in _CODE_ENDS:
        declared = special_token(metadata, name)
        if declared is not None and declared < len(tokens):
            found.append(declared)
        elif declared is None:
            found += [ids[text] for text in texts if text in ids][:1]
    known = _known_ends(ids)
    return tuple(dict.fromkeys([*found, *known.values()]))


def _known_ends(ids: Mapping[str, int]) -> dict[str, int]:
    known = {text: ids[text] for text in _ENDS if text in ids}
    if ({"<|return|>", "<|call|>"} <= known.keys()) or ({"<|calls|>", "<|flush|>"} <= known.keys()):
        known.pop("<|end|>", None)  # there it ends a message, not the text
    if "<|tool_response>" in known:
        known.pop("</s>", None)
    return known


def _control_by_text(metadata: Mapping[str, Any], tokens: list[str]) -> set[int]:
    """Ids of tokens that are control tokens by their text, whatever type the file gives them."""
    ids = {token: i for i, token in enumerate(tokens) if token}
    found = set(_known_ends(ids).values())
    for name, texts in (*_CODE_ENDS, *_CODE_PARTS):
        if special_token(metadata, name) is None:
            found |= {ids[text] for text in texts if text in ids}
    return found


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    """All tokens; the empty string stands for ids that no text has."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise CheckpointError("metadata key tokenizer.ggml.tokens is missing: the file has no tokenizer")
    named = [token for token in tokens if token]
    if len(set(named)) != len(named):
        raise CheckpointError("tokenizer.ggml.tokens holds the same token twice")
    return tokens


def _types(metadata: Mapping[str, Any], count: int) -> list[int]:
    types = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        return [_NORMAL] * count
    if not isinstance(types, Sequence | np.ndarray) or isinstance(types, str):
        raise CheckpointError(f"tokenizer.ggml.token_type is {types!r:.80}, expected a list")
    if len(types) != count:
        raise CheckpointError(f"tokenizer.ggml.token_type has {len(types)} entries, expected {count}")
    return [int(t) for t in types]


def _special(metadata: Mapping[str, Any], name: str, kind: Any, count: int) -> int | None:
    """Id of a special token, SentencePiece's own where the file does not say; CheckpointError for one of no token."""
    token = special_token(metadata, name)
    if kind == "llama" and metadata.get(f"tokenizer.ggml.{name}_token_id") is None:
        default = _SENTENCEPIECE_DEFAULTS.get(name)
        return default if default is not None and default < count else None
    if token is not None and not 0 <= token < count:
        raise CheckpointError(f"tokenizer.ggml.{name}_token_id is {token}, expected one of {count} tokens")
    return token


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> tuple[Tokenizer, bool]:
    """Byte-level BPE, and whether this family begins a text with BOS when the file does not say."""
    pre = metadata.get("tokenizer.ggml.pre", "default")
    words = WORDS.get(pre) if isinstance(pre, str) else None
    if words is None:
        raise CheckpointError(f"tokenizer.ggml.pre {pre!r:.80} is not supported (only {', '.join(sorted(WORDS))})")
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise CheckpointError("metadata key tokenizer.ggml.merges is missing")
    pairs = [(m[:cut], m[cut + 1 :]) for m in merges for cut in [m.find(" ", 1)]]
    tokenizer = Tokenizer(_bpe(tokens, pairs, ignore_merges=words.whole_words))
    tokenizer.pre_tokenizer = words.pre_tokenizer()  # add_space_prefix is SentencePiece's alone, as in llama.cpp
    tokenizer.decoder = decoders.ByteLevel()
    if words.normalized:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer, words.adds_bos


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> Tokenizer:
    """SentencePiece's BPE, which merges the pair whose result scores best, as ranked merges with byte fallback."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, Sequence | np.ndarray) or isinstance(scores, str) or len(scores) != len(tokens):
        raise CheckpointError("metadata key tokenizer.ggml.scores is missing or of another length than the tokens")
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN and token), None)
    if unknown is None and "tokenizer.ggml.token_type" not in metadata:
        unknown = tokens[_special(metadata, "unknown", "llama", len(tokens)) or 0] or None
    # Bytes are known by their text, whatever types the file gives.
    bytes_known = _BYTE in types or "<0x00>" in tokens
    merges = sentencepiece_merges(tokens, types, [float(score) for score in scores])
    tokenizer = Tokenizer(_bpe(tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=bytes_known))
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces] if prefix else [spaces])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def sentencepiece_merges(tokens: list[str], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to split a piece into two pieces, best score of the whole first, then by id of whole and of parts.

    CheckpointError for a piece that is so long that trying the ways would take for ever.
    """
    ids = {token: i for i, token in enumerate(tokens) if token and types[i] in (_NORMAL, _USER_DEFINED)}
    longest = max(ids, key=len, default="")
    if len(longest) > _LONGEST_PIECE:
        raise CheckpointError(
            f"token {ids[longest]} has {len(longest)} characters, more than the {_LONGEST_PIECE} of any real piece"
        )
    lengths = sorted({len(token) for token in ids})
    ranked = []
    for token, i in ids.items():
        for cut in lengths:
            if cut >= len(token):
                break
            left = ids.get(token[:cut])
            right = ids.get(token[cut:]) if left is not None else None
            if left is not None and right is not None:
                ranked.append((-scores[i], i, left, right))
    ranked.sort()
    return [(tokens[left], tokens[right]) for _, _, left, right in ranked]


def _bpe(tokens: list[str], merges: list[tuple[str, str]], **options: Any) -> models.BPE:
    vocabulary = {token: i for i, token in enumerate(tokens) if token}
    with library_errors(CheckpointError, "the tokenizer's merges do not fit its tokens"):
        return models.BPE(vocab=vocabulary, merges=merges, **options)


def _add_special(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Tokens that are found in text before it is cut: control tokens (special) and user-defined ones."""
    for kind, special in ((_CONTROL, True), (_UNKNOWN, True), (_USER_DEFINED, False)):
        added = [
            AddedToken(token, normalized=False, special=special)
            for token, t in zip(tokens, types, strict=True)
            if t == kind and token
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)


def _add_post_processor(
    tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: list[str], add_bos: bool, ids: Mapping[str, int | None]
) -> None:
    """BOS before and EOS after a text, as the file says."""
    parts, special = ["$A"], []
    for name, default, index in (("bos", add_bos, 0), ("eos", False, 2)):
        flag = metadata.get(f"tokenizer.ggml.add_{name}_token", default)
        if not isinstance(flag, bool):
            raise CheckpointError(f"tokenizer.ggml.add_{name}_token is {flag!r:.80}, expected true or false")
        token = ids[name]
        if not flag:
            continue
        if token is None or not tokens[token]:
            _LOG.warning("tokenizer.ggml.add_%s_token is true, but the file names no such token: none is added", name)
            continue
        parts.insert(index, tokens[token])
        special.append((tokens[token], token))
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(single=parts, special_tokens=special)
