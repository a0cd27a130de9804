"""Text to token ids and back, and conversations to text. Knows nothing of weights.

Two kinds of tokenizer occur in the Llama family: byte-level BPE (Llama 3, SmolLM2) and SentencePiece's BPE with byte
fallback (Llama 2, Mistral). Both write a text as bytes, so decoding is the concatenation of each token's bytes, and a
stream is that concatenation cut at whole characters.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from spqt_ti.bounded_json import parse_object
from spqt_ti.errors import CheckpointError, GenerationError
from spqt_ti.generation.chat import ChatTemplate
from spqt_ti.model.config import ModelConfig
from spqt_ti.sources.token_roles import ends_of, names_of
from spqt_ti.sources.tokenizers_library import check_bounds, library_errors

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"  # SentencePiece's visible space


class Tokenizer:
    """The tokenizer of one model; ids are those of the original implementation."""

    def __init__(self, tokenizer_json: str, config: ModelConfig, chat_template: str | None = None) -> None:
        """From the content of a `tokenizer.json`; CheckpointError when it is damaged or of another family's kind."""
        with library_errors(CheckpointError, "the tokenizer cannot be read"):
            fields = parse_object(tokenizer_json)
            self._patterns = check_bounds(fields)
            self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
            self._tokenizer.no_truncation()  # a saved training setting must not cut prompts
            self._tokenizer.no_padding()
            added = fields.get("added_tokens") or []
            self._special = {entry["id"]: entry["special"] for entry in added}
            self._added = {entry["id"]: entry["content"] for entry in added}
            names, ends = names_of(added), ends_of(added)
        self._byte_level, self._strips_space = _decoder_kind(fields.get("decoder"))
        self._vocab_size, self._bos = config.vocab_size, config.bos_token_id
        self._bytes: dict[int, bytes] = {}
        self.eos_ids = frozenset({*config.eos_token_ids, *(token for token in ends if token < config.vocab_size)})
        self.chat_template = chat_template
        self._template: ChatTemplate | None = None
        # A tokenizer that does not say what its tokens are for: what the model's config says.
        configured = {"bos_token": config.bos_token_id, "eos_token": next(iter(config.eos_token_ids), None)}
        self._names = {name: self._name(token) for name, token in configured.items()} if names is None else names

    def encode(self, text: str, *, parse_special: bool = False, add_special: bool = True) -> list[int]:
        """Token ids of a text.

        `add_special` puts BOS in front if (and only if) the model's tokenizer does so. With `parse_special`, control
        tokens spelled out in the text, such as `<|im_end|>`, become that token, as Hugging Face always has it. The
        default is llama.cpp's library's: text is only text, so that what a user types cannot end a turn.
        GenerationError for a token that the model has no embedding for, and for a text that would take the tokenizer's
        own patterns too long.
        """
        with library_errors(GenerationError, "the tokenizer does not take this text"):
            self._patterns.check(self._tokenizer, text)
            self._tokenizer.encode_special_tokens = not parse_special
            ids = list(self._tokenizer.encode(text, add_special_tokens=add_special).ids)
        for token in ids:
            if token >= self._vocab_size:
                raise GenerationError(
                    f"token {self._name(token)!r} has id {token}, but the model knows only {self._vocab_size} tokens"
                )
        return ids

    @property
    def special_names(self) -> dict[str, Any]:
        """What chat templates call the control tokens (`eos_token`, ...), with the token's text."""
        return dict(self._names)

    @property
    def special_ids(self) -> frozenset[int]:
        """Control tokens: no text comes from them."""
        return frozenset(token for token, special in self._special.items() if special)

    def special_id(self, text: str) -> int | None:
        """The control token that is spelled like this."""
        return next((token for token in sorted(self.special_ids) if self._added.get(token) == text), None)

    @property
    def bos(self) -> list[int]:
        """What `encode` puts in front of every text: BOS, or nothing."""
        return [token for token in self.encode("") if token == self._bos]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD. GenerationError for an unknown id."""
        stream = self.stream(skip_special=skip_special)
        return "".join([stream.push(token) for token in ids]) + stream.finish()

    def stream(
        self, *, skip_special: bool = True, continues: bool = False, show: Collection[int] = ()
    ) -> TokenStream:  # fmt: skip
        """A decoder to push ids into, one at a time. `show`: control tokens that are text even with `skip_special`.

        `continues`: the ids go on after other text, as an answer after its prompt does. SentencePiece's space before
        the first word is kept then; at the start of a text it is dropped.
        """
        return TokenStream(self, skip_special, self._strips_space and not continues, frozenset(show))

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The conversation as the model's chat template writes it; for `encode_chat`, or to look at.

        A message has `role` and `content`; `tools` are JSON schemas of functions, and `documents` what is to be
        answered from, usually of a `title` and a `text` each, for templates that show them.

        GenerationError without a template, or when it refuses the messages.
        """
        if not self.chat_template:
            raise GenerationError("this model has no chat template: give it plain text instead")
        for message in messages:
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise GenerationError(f"a chat message needs 'role' and 'content', got {message!r}")
        for document in documents or ():
            if not isinstance(document, Mapping):
                raise GenerationError(
                    f"a document is an object such as {{'title': ..., 'text': ...}}, got {document!r:.80}"
                )
        if self._template is None:
            self._template = ChatTemplate(self.chat_template, self._names)
        return self._template.render(messages, add_generation_prompt, tools, documents)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Token ids of a conversation. The template itself writes BOS where the model wants one, so none is added."""
        text = self.chat(messages, add_generation_prompt=add_generation_prompt, tools=tools, documents=documents)
        return self.encode(text, parse_special=True, add_special=False)

    def token_bytes(self, token: int, *, skip_special: bool = True) -> bytes:
        """What one token adds to a text. Empty for ids that only pad the vocabulary and for skipped special tokens."""
        if not 0 <= token < self._vocab_size:
            raise GenerationError(f"token id {token} is outside the vocabulary of {self._vocab_size}")
        if skip_special and self._special.get(token, False):
            return b""
        if token not in self._bytes:
            name = self._tokenizer.id_to_token(token)
            # An added token is its own text, also where its letters stand for bytes.
            added = self._added.get(token)
            self._bytes[token] = added.encode() if added else b"" if name is None else self._to_bytes(name)
        return self._bytes[token]

    def spelled(self, token: int) -> bytes:
        """The text of a token, control tokens spelled out."""
        return self.token_bytes(token, skip_special=False)

    def _to_bytes(self, name: str) -> bytes:
        if self._byte_level:
            mapped = [_BYTE_OF.get(character) for character in name]
            # An added token is written as it is; its characters need not be in the alphabet.
            return name.encode() if None in mapped else bytes(b for b in mapped if b is not None)
        byte = _BYTE_TOKEN.fullmatch(name)
        return bytes([int(byte[1], 16)]) if byte else name.replace(_SPACE, " ").encode()

    def _name(self, token: int | None) -> str:
        return (self._tokenizer.id_to_token(token) if token is not None else None) or ""


class TokenStream:
    """Decodes ids one by one; never gives out half a character. Pieces and `finish()` together are `decode(ids)`."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool, strip: bool, show: frozenset[int]) -> None:
        self._tokenizer, self._skip_special, self._strip, self._show = tokenizer, skip_special, strip, show
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that became certain with this token: possibly empty, possibly a character begun before."""
        skip = self._skip_special and token not in self._show
        return self._stripped(self._utf8.decode(self._tokenizer.token_bytes(token, skip_special=skip)))

    def finish(self) -> str:
        """U+FFFD if the last character was never completed, else nothing."""
        return self._stripped(self._utf8.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        """Without the space that SentencePiece puts before a text."""
        if not (self._strip and text):
            return text
        self._strip = False
        return text.removeprefix(" ")


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE (GPT-2's): printable bytes are themselves, the others start at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _decoder_kind(decoder: Mapping[str, Any] | None) -> tuple[bool, bool]:
    """(byte-level?, strips a leading space?) of a tokenizer.json's decoder; CheckpointError for any other kind."""
    decoder = decoder or {}
    steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder] if decoder else []
    kinds = {step["type"]: step for step in steps}
    if set(kinds) == {"ByteLevel"}:
        return True, False
    if "Metaspace" in kinds and set(kinds) <= {"Metaspace", "ByteFallback", "Fuse"}:
        return False, kinds["Metaspace"].get("prepend_scheme", "always") != "never"
    replaces_space = kinds.get("Replace", {}).get("pattern") == {"String": _SPACE}
    if replaces_space and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        return False, kinds.get("Strip", {}).get("start", 0) > 0
    found = ", ".join(kinds) or "none"
    raise CheckpointError(f"the tokenizer's decoder ({found}) is not supported (only ByteLevel and SentencePiece's)")
