"""A decoder that nobody wrote: it learns from half of the answers what the other half says.

A channel's own decoder looks where its encoder hides. This one looks at everything that is left of an answer once what
the gateway itself makes up is masked, so that a row marked 0 is held to more than one place.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from loadtests.exfiltration.information import information_bits
from loadtests.exfiltration.response import Response

_OWN = re.compile(rb"[0-9a-f]{24}|\"created\":\d+|[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} [\d:]{8} GMT")


def content(response: Response) -> object:
    """Status, headers and body without ids and times, and how it ended."""
    # A stream may be cut into events anywhere by the clock, so its text stands for it and its events do not.
    return _OWN.sub(b"", response.head), frozenset(_OWN.sub(b"", response.body).split(b"\n")), response.end


def layout(response: Response) -> object:
    """How the body was cut into chunks."""
    return tuple(len(_OWN.sub(b"", chunk.data)) for chunk in response.chunks)


def trained_bits(answers: Sequence[tuple[int, Response]], *, bits: int) -> float:
    """What the better of two learnt decoders gets of the second half, scaled to the whole."""
    half = len(answers) // 2
    return max(_learn(answers[:half], answers[half:], view, bits=bits) for view in (content, layout)) * 2


def _learn(
    known: Sequence[tuple[int, Response]],
    unknown: Sequence[tuple[int, Response]],
    view: Callable[[Response], object],
    *,
    bits: int,
) -> float:
    votes: dict[object, Counter[int]] = defaultdict(Counter)
    seen: Counter[object] = Counter()
    for symbol, response in known:
        feature = view(response)
        seen[feature] += 1
        votes[feature].update(at for at in range(bits) if symbol >> at & 1)
    pairs = []
    for symbol, response in unknown:
        feature = view(response)
        guess = sum(1 << at for at, count in votes[feature].items() if 2 * count > seen[feature])
        pairs.append((symbol, guess if seen[feature] else None))
    return information_bits(pairs, bits=bits)
