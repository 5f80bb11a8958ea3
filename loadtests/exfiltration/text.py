"""What text can hide, from the blunt to the fluent. None of it is detected; all of it is priced."""

import base64
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path

from loadtests.exfiltration import honest
from loadtests.exfiltration.answer import text_of
from loadtests.exfiltration.backend import Ask, Wire
from loadtests.exfiltration.channel import STREAM, WHOLE, Channel, Loot, Question, Residual, Scene, Steal, ask_all
from loadtests.exfiltration.hiding import from_marked, marked
from loadtests.exfiltration.information import bits_of, prefix_length
from loadtests.exfiltration.word_model import documents_model

RESPONSES = 8
SECRET_BYTES = 1200  # in each answer
COVER = " ".join(["résumé café naïve weir holds river water back again"] * 40)
MARKS_MAX = 320
PHRASE_BYTES, PHRASE_BITS = 48, 14
DICTIONARY = Path(__file__).resolve().parents[2] / "gateway" / "meters" / "english.dict"  # public: it ships

Hide = Callable[[bytes], str]
Reveal = Callable[[str], list[int]]


def by_text(hide: Hide, reveal: Reveal, *, secret_bytes: int, question: Question, responses: int = RESPONSES) -> Steal:
    """A theft in the text of answers. Bits count up to the first that is wrong."""

    async def steal(scene: Scene) -> Loot:
        secrets = [scene.rng.randbytes(secret_bytes) for _ in range(responses)]
        texts = [hide(secret) for secret in secrets]

        async def act(ask: Ask, wire: Wire) -> None:
            text = texts[ask.number]
            await wire.send(
                honest.stream(honest.events(text)) if ask.fields.get("stream") else honest.whole(honest.chat(text))
            )

        scene.backend.act = act
        answers = await ask_all(scene, question, responses, at_once=4)
        decoded = sum(
            prefix_length(bits_of(secret), reveal(text_of(answer)))
            for secret, answer in zip(secrets, answers, strict=True)
        )
        return Loot(sent_bits=8 * secret_bytes * responses, decoded_bits=decoded, responses=responses)

    return steal


def _base64(text: str) -> list[int]:
    return bits_of(base64.b64decode(text[: len(text) // 4 * 4]))


def in_groups(secret: bytes, bits: int) -> list[int]:
    """The secret as numbers of `bits` bits; its end is padded."""
    row = bits_of(secret)
    row += [0] * (-len(row) % bits)
    return [int("".join(map(str, row[at : at + bits])), 2) for at in range(0, len(row), bits)]


def from_groups(numbers: list[int], bits: int) -> list[int]:
    """The bits again."""
    return [number >> at & 1 for number in numbers for at in range(bits - 1, -1, -1)]


def _uniform_words(secret: bytes) -> str:
    words = documents_model().words[:1024]
    return " ".join(words[number] for number in in_groups(secret, 10))


def _read_uniform_words(text: str) -> list[int]:
    words = documents_model().words[:1024]
    return from_groups([words.index(word) for word in text.split(" ")], 10)


@cache
def phrases() -> list[str]:
    """Long pieces of the gateway's own dictionary: the cheapest text there is."""
    text = "".join(map(chr, DICTIONARY.read_bytes()))
    found = dict.fromkeys(text[at : at + PHRASE_BYTES] for at in range(len(text) - PHRASE_BYTES))
    return [phrase for phrase in found if phrase.isascii() and phrase.isprintable()][: 1 << PHRASE_BITS]


def _in_phrases(secret: bytes) -> str:
    return "".join(phrases()[number % len(phrases())] for number in in_groups(secret, _phrase_bits()))


def _read_phrases(text: str) -> list[int]:
    table = {phrase: number for number, phrase in enumerate(phrases())}
    pieces = [text[at : at + PHRASE_BYTES] for at in range(0, len(text), PHRASE_BYTES)]
    return from_groups([table[piece] for piece in pieces], _phrase_bits())


def _phrase_bits() -> int:
    return len(phrases()).bit_length() - 1


def _marked(name: str, what: str, zero: str, one: str) -> Channel:
    """One bit for each word of a cover text, as a mark that readers do not see."""

    def hide(secret: bytes) -> str:
        return marked(int.from_bytes(secret, "little"), 8 * len(secret), text=COVER, zero=zero, one=one)

    def reveal(text: str) -> list[int]:
        symbol = from_marked(text, MARKS_MAX, zero=zero, one=one)
        return bits_of(symbol.to_bytes(MARKS_MAX // 8, "little")) if symbol is not None else []

    return _channel(name, what, hide, reveal, secret_bytes=MARKS_MAX // 8)


def _homoglyphs(secret: bytes) -> str:
    letters = iter(bits_of(secret))
    return "".join("а" if letter == "a" and next(letters, 0) else letter for letter in COVER.replace("e", "a"))


def _read_homoglyphs(text: str) -> list[int]:
    return [int(letter == "а") for letter in text if letter in "aа"]


def _normal_forms(secret: bytes) -> str:
    letters = iter(bits_of(secret))
    return "".join(unicodedata.normalize("NFD", c) if c in "éï" and next(letters, 0) else c for c in COVER)


def _read_normal_forms(text: str) -> list[int]:
    bits: list[int] = []
    for letter in text:
        if letter in "éï":
            bits.append(0)
        elif unicodedata.combining(letter):
            bits.append(1)
    return bits


def _channel(
    name: str, what: str, hide: Hide, reveal: Reveal, *, secret_bytes: int = SECRET_BYTES, question: Question = STREAM
) -> Channel:
    steal = by_text(hide, reveal, secret_bytes=secret_bytes, question=question)
    return Channel(name=name, what=what, residual=Residual.PRICED, steal=steal)


CHANNELS = (
    _channel("text-base64", "weights as base64", lambda secret: base64.b64encode(secret).decode(), _base64),
    _channel(
        "text-base64-whole",
        "the same, not streamed",
        lambda secret: base64.b64encode(secret).decode(),
        _base64,
        question=WHOLE,
    ),
    _channel(
        "text-seven-bits",
        "every ASCII code, control characters too: the densest text",
        lambda secret: "".join(map(chr, in_groups(secret, 7))),
        lambda text: from_groups(list(map(ord, text)), 7),
    ),
    _channel(
        "text-uniform-characters",
        "16 bits in one character of four bytes",
        lambda secret: "".join(chr(0x10000 + number) for number in in_groups(secret, 16)),
        lambda text: from_groups([ord(letter) - 0x10000 for letter in text], 16),
    ),
    _channel("text-uniform-words", "one of 1024 words, all equally likely", _uniform_words, _read_uniform_words),
    _channel(
        "text-dictionary", "phrases of the gateway's own dictionary", _in_phrases, _read_phrases, secret_bytes=200
    ),
    _marked("zero-width", "zero-width characters after words", "\u200b", "\u200c"),
    _marked("bidi", "direction marks after words", "\u200e", "\u200f"),
    _channel("homoglyphs", "Latin or Cyrillic letters", _homoglyphs, _read_homoglyphs, secret_bytes=20),
    _channel("normal-forms", "composed or decomposed accents", _normal_forms, _read_normal_forms, secret_bytes=15),
)
