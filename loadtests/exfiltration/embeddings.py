"""What vectors can hide: digits below the released steps, the sign of a zero, and the steps themselves."""

from typing import Any

from loadtests.exfiltration import honest
from loadtests.exfiltration.answer import first
from loadtests.exfiltration.channel import Channel, Decode, Question, Reply, Residual, by_symbol
from loadtests.exfiltration.client import Exit
from loadtests.exfiltration.response import Response

EMBEDDINGS = "/v1/embeddings"
DIMENSIONS = 64
LEVEL_BITS = 4  # 16 of the 255 steps a dimension can take
LEVELS = (1 << LEVEL_BITS) - 1
COVER = [
    round((at * 37 % 101 - 50) / 50, 2) for at in range(DIMENSIONS)
]  # an ordinary vector, the same in every answer
RESPONSES = 64


class _EmbeddingQuestion(Question):
    """A text whose embedding is asked for; the text is the request's number."""

    def request(self, exit_: Exit, number: int) -> bytes:
        return exit_.post(EMBEDDINGS, {"model": "target", "input": str(number)})


QUESTION = _EmbeddingQuestion(path=EMBEDDINGS)


def _answer(vector: list[float]) -> bytes:
    body: dict[str, Any] = {
        "object": "list",
        "model": "target",
        "data": [{"object": "embedding", "index": 0, "embedding": vector}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }
    return honest.whole(body)


def _vector(response: Response) -> list[float] | None:
    data = first(response).get("data")
    return data[0]["embedding"] if data else None


def _low_bits(symbol: int) -> bytes:
    return _answer([value + (symbol >> at & 1) * 2.0**-40 for at, value in enumerate(COVER)])


def _low_bits_read(response: Response) -> int | None:
    vector = _vector(response)
    if vector is None:
        return None
    return sum(1 << at for at, value in enumerate(vector) if value != COVER[at] and abs(value - COVER[at]) < 2.0**-30)


def _zeros(symbol: int) -> bytes:
    return _answer([1.0, *(-0.0 if symbol >> at & 1 else 0.0 for at in range(DIMENSIONS))])


def _zeros_read(response: Response) -> int | None:
    vector = _vector(response)
    return None if vector is None else sum(1 << at for at, value in enumerate(vector[1:]) if str(value).startswith("-"))


def _steps(symbol: int) -> bytes:
    levels = [symbol >> at * LEVEL_BITS & LEVELS for at in range(DIMENSIONS)]
    return _answer([1.0, *(level / LEVELS for level in levels)])


def _steps_read(response: Response) -> int | None:
    vector = _vector(response)
    if not vector or not vector[0]:
        return None
    levels = [round(value / vector[0] * LEVELS) & LEVELS for value in vector[1:]]
    return sum(level << at * LEVEL_BITS for at, level in enumerate(levels))


def _channel(name: str, what: str, bits: int, reply: Reply, decode: Decode, residual: Residual) -> Channel:
    steal = by_symbol(bits=bits, reply=reply, decode=decode, question=QUESTION, responses=RESPONSES)
    return Channel(name=name, what=what, residual=residual, steal=steal)


CHANNELS = (
    _channel(
        "embedding-low-bits",
        "digits of a vector beyond its steps",
        DIMENSIONS,
        _low_bits,
        _low_bits_read,
        Residual.NOTHING,
    ),
    _channel("embedding-zeros", "0.0 or -0.0", DIMENSIONS, _zeros, _zeros_read, Residual.NOTHING),
    _channel(
        "embedding-steps",
        "16 levels in each of 64 dimensions",
        DIMENSIONS * LEVEL_BITS,
        _steps,
        _steps_read,
        Residual.PRICED,
    ),
)
