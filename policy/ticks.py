"""The adaptive code of an answer's tick symbols: Krichevsky-Trofimov estimates over what has been released so far.

While an answer is open its ticks are charged by fixed codes (`policy.codelength`), whose worst case can be reserved. Once it
has ended, the same symbols are described again, adaptively, and the cheaper of both descriptions plus one bit is owed.

A KT estimate gives the next symbol (n_k + 1/2) / (n + K/2), where n_k counts its past occurrences (Krichevsky and Trofimov
1981). The probability of a whole sequence then depends on the counts alone:
Gamma(K/2) / Gamma(n + K/2) * prod_k Gamma(n_k + 1/2) / Gamma(1/2), so counting is all that has to be done per tick.
"""

from __future__ import annotations

from math import ceil, lgamma, log

from policy.codelength import elias_delta_bits

CHOICE_BITS = 1  # which of the two codes describes an answer's ticks; owed by every answer
QUANTA_CLASSES = 8  # 1 to 7 quanta a tick, and "more", which is followed by an Elias delta code
_GUARD_BITS = 2.0**-20  # lgamma is good to about 1e-13 here; this is owed for it on top


def kt_bits(counts: tuple[int, ...]) -> float:
    """-log2 of the KT probability of any sequence with these symbol counts, in bits."""
    total, half = sum(counts), len(counts) / 2
    nats = lgamma(total + half) - lgamma(half)
    nats -= sum(lgamma(count + 0.5) - lgamma(0.5) for count in counts)
    return nats / log(2)


class TickSymbols:
    """Counts of one answer's tick symbols, and the length of their adaptive code."""

    __slots__ = ("_escape_bits", "_fixed_bits", "_idle", "_quanta")

    def __init__(self) -> None:
        # [was the tick before idle][is this one idle]: engines are steady, so one tick tells much of the next.
        self._idle = [[0, 0], [0, 0]]
        self._quanta = [0] * QUANTA_CLASSES
        self._escape_bits = 0
        self._fixed_bits = 0

    def piece(self, *, idle_ticks: int, quanta: int) -> None:
        """A piece of so many quanta after so many idle ticks."""
        self._silence(idle_ticks)
        symbol = min(quanta, QUANTA_CLASSES) - 1
        self._quanta[symbol] += 1
        if symbol == QUANTA_CLASSES - 1:
            self._escape_bits += elias_delta_bits(quanta - QUANTA_CLASSES + 1)
        self._fixed_bits += elias_delta_bits(idle_ticks + 1) + 1 + elias_delta_bits(quanta)

    def end(self, *, idle_ticks: int) -> None:
        """The ending, after so many idle ticks."""
        self._silence(idle_ticks)
        self._fixed_bits += elias_delta_bits(idle_ticks + 1) + 1

    @property
    def fixed_bits(self) -> int:
        """What the fixed codes have charged for these symbols."""
        return self._fixed_bits

    def saving_bits(self) -> int:
        """What the adaptive code gives back of that, if anything."""
        return max(self._fixed_bits - self.adaptive_bits(), 0)

    def adaptive_bits(self) -> int:
        """The whole sequence under the adaptive code, rounded up once: silences, end or piece, quanta."""
        pieces = sum(self._quanta)
        bits = sum(kt_bits((after[0], after[1])) for after in self._idle)
        bits += kt_bits((pieces, 1)) + kt_bits(tuple(self._quanta))
        return ceil(bits + _GUARD_BITS) + self._escape_bits

    def _silence(self, idle_ticks: int) -> None:
        if idle_ticks == 0:
            self._idle[0][0] += 1
            return
        self._idle[0][1] += 1
        self._idle[1][1] += idle_ticks - 1
        self._idle[1][0] += 1
