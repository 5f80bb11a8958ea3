"""What lists of vectors can hide: handles that nobody gave, their order, others' names, and what a deletion says."""

import hashlib
from dataclasses import dataclass
from typing import Any

from loadtests.exfiltration import honest
from loadtests.exfiltration.answer import first
from loadtests.exfiltration.channel import Channel, Decode, Question, Reply, Residual, by_symbol
from loadtests.exfiltration.client import Exit
from loadtests.exfiltration.hiding import from_order, order
from loadtests.exfiltration.response import Response

SPACE = hashlib.sha256(b"thief").hexdigest()[:16]  # the thief's own, which the backend has seen in every request
QUERY = "?model=target"  # the thief may use several models
HANDLES = 8
LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
LETTER_BITS = 5
HANDLE_LETTERS = 12
LAYERS = 64
LOW_BITS = 20
RESPONSES = 64  # one after the other, a tick each
NAMES = ("a", "b", "c", "d")
ORDER_BITS = 4  # of the 24 permutations of four names


@dataclass(frozen=True, kw_only=True)
class _Bodiless(Question):
    """A question without a body."""

    method: str = "GET"
    verb: str = "GET"

    def request(self, exit_: Exit, number: int) -> bytes:
        """See `Question.request`."""
        return exit_.bodiless(self.verb, self.path)


LIST = _Bodiless(path=f"/v1/steering/vectors{QUERY}")
ONE = _Bodiless(path=f"/v1/steering/vectors/v{QUERY}")
DELETE = _Bodiless(path=f"/v1/steering/vectors/v{QUERY}", verb="DELETE")


def _vector(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "object": "steering.vector", "kind": "direction", "layers": [3], **fields}


def _list(vectors: list[dict[str, Any]]) -> bytes:
    return honest.whole({"object": "list", "data": vectors})


def _listed(response: Response) -> list[dict[str, Any]]:
    return first(response).get("data") or []


def _own(name: str) -> str:
    """A handle, whether the gateway has taken the name space off or a plain proxy has not."""
    return name.removeprefix(f"{SPACE}-")


def _handles(symbol: int) -> bytes:
    names = []
    for at in range(HANDLES):
        bits = symbol >> at * HANDLE_LETTERS * LETTER_BITS
        letters = [LETTERS[bits >> n * LETTER_BITS & 31] for n in range(HANDLE_LETTERS)]
        names.append(f"{SPACE}-{at}{''.join(letters)}")  # numbered, since lists are sorted
    return _list([_vector(name) for name in names])


def _handles_read(response: Response) -> int | None:
    names = [_own(vector["id"])[1:] for vector in sorted(_listed(response), key=lambda v: _own(v["id"]))]
    if len(names) != HANDLES or any(len(name) != HANDLE_LETTERS for name in names):
        return None
    letters = [LETTERS.index(letter) for name in names for letter in name]
    return sum(letter << at * LETTER_BITS for at, letter in enumerate(letters))


def _ordered(symbol: int) -> bytes:
    return _list([_vector(f"{SPACE}-{name}") for name in order(symbol, NAMES)])


def _foreign(symbol: int) -> bytes:
    return _list([_vector(f"{SPACE}-v"), _vector(f"{symbol:016x}-v"), _vector(f"x{symbol:05x}")])


def _foreign_read(response: Response) -> int | None:
    found = [vector["id"] for vector in _listed(response) if vector["id"].startswith("x")]
    return int(found[0][1:], 16) if found else None


def _layers_read(response: Response) -> int | None:
    layers = first(response).get("layers")
    return sum(1 << at for at in layers) if layers else None


def _tensor(symbol: int) -> bytes:
    values = [(symbol >> at & 1) / 2 for at in range(LOW_BITS)]
    return honest.whole(_vector(f"{SPACE}-v", values=values, norm=symbol, description=f"{symbol:x}"))


def _tensor_read(response: Response) -> int | None:
    found = first(response).get("norm")
    return found if isinstance(found, int) else None


def _deleted_read(response: Response) -> int | None:
    found = first(response).get("remaining")
    return found if isinstance(found, int) else None


def _channel(
    name: str, what: str, bits: int, reply: Reply, decode: Decode, question: Question, residual: Residual
) -> Channel:
    steal = by_symbol(bits=bits, reply=reply, decode=decode, question=question, responses=RESPONSES)
    return Channel(name=name, what=what, residual=residual, steal=steal)


CHANNELS = (
    _channel(
        "vector-handles",
        "eight handles that nobody gave, of twelve letters",
        HANDLES * HANDLE_LETTERS * LETTER_BITS,
        _handles,
        _handles_read,
        LIST,
        Residual.PRICED,
    ),
    _channel(
        "vector-order",
        "the order of a list",
        ORDER_BITS,
        _ordered,
        lambda r: from_order([_own(vector["id"]) for vector in _listed(r)], NAMES),
        LIST,
        Residual.NOTHING,
    ),
    _channel(
        "vector-foreign-names",
        "names that are not the tenant's own",
        LOW_BITS,
        _foreign,
        _foreign_read,
        LIST,
        Residual.NOTHING,
    ),
    _channel(
        "vector-layers",
        "which of 64 layers a vector is at",
        LAYERS,
        lambda symbol: honest.whole(_vector(f"{SPACE}-v", layers=[at for at in range(LAYERS) if symbol >> at & 1])),
        _layers_read,
        ONE,
        Residual.PRICED,
    ),
    _channel(
        "vector-values",
        "the values of a vector, its norm, its description",
        LOW_BITS,
        _tensor,
        _tensor_read,
        ONE,
        Residual.NOTHING,
    ),
    _channel(
        "vector-deletion",
        "what the answer to a deletion says",
        LOW_BITS,
        lambda symbol: honest.whole({"id": "v", "deleted": bool(symbol & 1), "remaining": symbol}),
        _deleted_read,
        DELETE,
        Residual.NOTHING,
    ),
)
