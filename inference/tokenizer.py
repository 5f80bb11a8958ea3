"""Text ↔ token ids for byte-level BPE vocabularies, and incremental detokenisation that never splits a character.

Source: the `tokenizers` library for encoding; decoding is our own table of bytes per token (GPT-2's byte alphabet), so
that a stream can be decoded one token at a time.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as BpeTokenizer

from inference.config import UnsupportedModelError

_GGUF_TYPE_CONTROL, _GGUF_TYPE_USER_DEFINED = 3, 4
_END_OF_TURN = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>")
_LLAMA3_LIKE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLIT_REGEX = {"qwen2": _LLAMA3_LIKE % "", "llama-bpe": _LLAMA3_LIKE % "{1,3}"}


class Tokenizer:
    """One vocabulary. `special` tokens never appear in decoded text; `end_ids` end an answer."""

    def __init__(self, bpe: BpeTokenizer) -> None:
        self._bpe = bpe
        self._bytes = _bytes_by_id(bpe)
        self.end_ids = frozenset(i for i in map(bpe.token_to_id, _END_OF_TURN) if i is not None)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """`add_special_tokens` adds what the model's post-processor does (a BOS, or nothing); templates write theirs."""
        return list(self._bpe.encode(text, add_special_tokens=add_special_tokens).ids)

    def literal(self) -> Tokenizer:
        """A copy that reads spelled-out special tokens as ordinary text and normalises nothing away."""
        bpe = BpeTokenizer.from_str(self._bpe.to_str())
        bpe.encode_special_tokens = True
        bpe.normalizer = None
        return Tokenizer(bpe)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Whole text of some tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for; nothing for special tokens and for ids beyond the vocabulary."""
        return self._bytes[token_id] if token_id < len(self._bytes) else b""

    def token_text(self, token_id: int | None) -> str:
        """The token as written in the vocabulary, specials included; chat templates ask for those."""
        return "" if token_id is None else self._bpe.id_to_token(token_id) or ""

    @property
    def document(self) -> str:
        """The whole vocabulary with its rules as the text of a `tokenizer.json`."""
        return str(self._bpe.to_str())

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Tokens that stand for no text, ascending: beginnings, ends and marks of chat templates."""
        added = self._bpe.get_added_tokens_decoder()
        return tuple(sorted(token_id for token_id, token in added.items() if token.special))


class Detokenizer:
    """Decodes one stream. Bytes of an unfinished character wait for the next token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left: U+FFFD if the stream ended inside a character."""
        return self._decoder.decode(b"", final=True)


def tokenizer_from_json(document: str) -> Tokenizer:
    """From the text of a `tokenizer.json`. Raises UnsupportedModelError unless it is byte-level BPE."""
    decoder = json.loads(document).get("decoder") or {}
    kinds = {decoder.get("type"), *(part.get("type") for part in decoder.get("decoders", ()))}
    if "ByteLevel" not in kinds:
        raise UnsupportedModelError("only byte-level BPE tokenizers are supported")
    return Tokenizer(BpeTokenizer.from_str(document))


def bpe_from_gguf(metadata: Mapping[str, Any]) -> BpeTokenizer:
    """Build the `tokenizers` object from GGUF metadata. Raises UnsupportedModelError for other tokenizer families."""
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        raise UnsupportedModelError(f"tokenizer {metadata.get('tokenizer.ggml.model')!r} is not byte-level BPE")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    bpe = BpeTokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    pre = metadata.get("tokenizer.ggml.pre", "default")
    bpe.pre_tokenizer = _pre_tokenizer(pre)
    if pre == "qwen2":
        bpe.normalizer = normalizers.NFC()
    bpe.decoder = decoders.ByteLevel()
    kinds: list[int] = metadata["tokenizer.ggml.token_type"]
    bpe.add_special_tokens(_added(tokens, kinds, _GGUF_TYPE_CONTROL))
    bpe.add_tokens(_added(tokens, kinds, _GGUF_TYPE_USER_DEFINED))
    return bpe


def _pre_tokenizer(name: str) -> Any:
    if name == "smollm":  # every digit is a token of its own, then GPT-2's splitting
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if name in ("default", "gpt-2"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name not in _SPLIT_REGEX:
        raise UnsupportedModelError(f"pre-tokenizer {name!r} is not known")
    split = pre_tokenizers.Split(Regex(_SPLIT_REGEX[name]), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _added(tokens: list[str], kinds: list[int], kind: int) -> list[AddedToken]:
    special = kind == _GGUF_TYPE_CONTROL
    return [AddedToken(t, special=special, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == kind]


def _bytes_by_id(bpe: BpeTokenizer) -> list[bytes]:
    alphabet = _byte_alphabet()
    added = bpe.get_added_tokens_decoder()
    vocabulary = bpe.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values()) + 1)
    for token, token_id in vocabulary.items():
        if token_id in added:
            table[token_id] = b"" if added[token_id].special else token.encode()
        else:
            table[token_id] = bytes(alphabet[char] for char in token if char in alphabet)
    return table


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte (`bytes_to_unicode` of openai/gpt-2), inverted."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
