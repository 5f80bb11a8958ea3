"""How large a lease should be: enough for some seconds of traffic, so little that crashes waste almost nothing."""

from __future__ import annotations

from math import exp

from policy.limits import LEASE_PARTS, LEASE_TRAFFIC_S


class Demand:
    """What one process spends of one account: an average that forgets with a time constant of `LEASE_TRAFFIC_S`."""

    def __init__(self, *, now_s: float) -> None:
        self._recent_bits = 0.0
        self._at_s = now_s

    def spend(self, bits: int, *, now_s: float) -> None:
        """So many bits were spent since the last call. Negative if refunds outweighed what left."""
        self._recent_bits = max(self._decayed_bits(now_s) + bits, 0.0)
        self._at_s = now_s

    def bits(self, *, now_s: float) -> int:
        """What the next `LEASE_TRAFFIC_S` will take, if they are like the last. An estimate, which bounds nothing."""
        return int(self._decayed_bits(now_s))

    def _decayed_bits(self, now_s: float) -> float:
        return self._recent_bits * exp(-max(now_s - self._at_s, 0.0) / LEASE_TRAFFIC_S)


def stock_bits(*, demand_bits: int, block_bits: int, remaining_bits: int, holders: int, limit_bits: int) -> int:
    """How much a process should hold beyond what open answers have reserved.

    The traffic that is expected, and no less than one block (the largest reservation of late); but of what the store has
    left no more than leaves as much for every other holder, and of the limit no more than a `LEASE_PARTS`-th, which bounds
    what a crash wastes. If not even a block fits, nothing: every reservation is then granted by itself, to its last bit.
    """
    most_bits = min(remaining_bits // (2 * holders), limit_bits // LEASE_PARTS)
    return min(max(demand_bits, block_bits), most_bits) if most_bits >= block_bits else 0
