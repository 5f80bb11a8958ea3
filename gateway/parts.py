"""Records that name as many accounts as there may be, in as many leaves as it takes: none is longer than a leaf may be. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from gateway.record import Fences, Frozen, Leaf, LeaseClosed, LeaseGranted, PolicyLoaded, Tally
from policy.limits import LEAF_BYTES_MAX

COMMAS_BYTES = 2  # between an item and its neighbour; it may stand in two places of a leaf
PARTS_END = 10**9  # stands for the number of a part while it is not known
T = TypeVar("T")
L = TypeVar("L", bound=Leaf)

_encode = msgspec.json.Encoder().encode


def leaf_bytes(leaf: Leaf) -> int:
    """How long a leaf is on the record."""
    return len(_encode(leaf))


def policy_loaded(digest: str, *, raised: Sequence[str], at_ms: int) -> PolicyLoaded:
    """A policy that came into force, in one leaf however many limits it raised: the ledger has them all."""

    def leaf(some: Sequence[str]) -> PolicyLoaded:
        return PolicyLoaded(at_ms=at_ms, policy=digest, raised=tuple(some), raised_more=len(raised))  # at most

    named = next(_shares(raised, leaf))
    return msgspec.structs.replace(leaf(named), raised_more=len(raised) - len(named))


def lease_granted(
    *, at_ms: int, lease: str, holder: str, bits: Mapping[str, int], fences: Mapping[str, int]
) -> Iterator[LeaseGranted]:
    """A lease of many accounts is granted in several leaves, each of which has other accounts."""

    def leaf(some: Sequence[tuple[bool, str, int]]) -> LeaseGranted:
        return LeaseGranted(
            at_ms=at_ms,
            lease=lease,
            holder=holder,
            bits={account: number for is_fence, account, number in some if not is_fence},
            fences={account: number for is_fence, account, number in some if is_fence},
        )

    named = [(False, account, number) for account, number in bits.items()]
    return fitted([*named, *((True, account, number) for account, number in fences.items())], leaf)


def lease_closed(*, at_ms: int, lease: str, holder: str, returned: Mapping[str, int]) -> Iterator[LeaseClosed]:
    """Account by account it may close anyway."""
    return fitted(
        list(returned.items()),
        lambda some: LeaseClosed(at_ms=at_ms, lease=lease, holder=holder, returned=dict(some)),
    )


def fences(known: Mapping[str, int], *, at_ms: int) -> Iterator[Fences]:
    """The fences of all accounts in use; of none, no leaf."""
    return fitted(list(known.items()), lambda some: Fences(at_ms=at_ms, fences=dict(some)))


def frozen(*, seen: Mapping[str, int], shown: Mapping[str, int], at_ms: int) -> Iterator[Frozen]:
    """What a store has forgotten: a restored backup may concern every account."""

    def leaf(some: Sequence[tuple[str, int]]) -> Frozen:
        there = {account: shown[account] for account, _ in some if account in shown}
        return Frozen(at_ms=at_ms, seen=dict(some), shown=there)

    return fitted(list(seen.items()), leaf)


def tallies(
    *,
    at_ms: int,
    holder: str,
    unspent_bits: Mapping[str, int],
    leases: Mapping[str, Mapping[str, int]],
    answers: Iterable[tuple[tuple[str, ...], Sequence[str]]],
) -> Sequence[Tally]:
    """A tally in parts. There is a first one even if the holder has nothing."""
    empty = Tally(at_ms=at_ms, holder=holder, part=PARTS_END, unspent_bits={}, leases={}, answers=())
    replace = msgspec.structs.replace

    def of_lease(lease: str) -> Callable[[Sequence[tuple[str, int]]], Tally]:
        return lambda some: replace(empty, leases={lease: dict(some)})

    def of_answers(accounts: tuple[str, ...]) -> Callable[[Sequence[str]], Tally]:
        return lambda some: replace(empty, answers=((accounts, tuple(some)),))

    parts = [
        *fitted(list(unspent_bits.items()), lambda some: replace(empty, unspent_bits=dict(some))),
        *(part for lease, bits in leases.items() for part in fitted(list(bits.items()), of_lease(lease))),
        *(part for accounts, names in answers for part in fitted(names, of_answers(accounts))),
    ]
    return [replace(part, part=number) for number, part in enumerate(parts or [empty])]


def fitted(items: Sequence[T], leaf: Callable[[Sequence[T]], L]) -> Iterator[L]:
    """Leaves of these items in order, as many together as a leaf has room for. Of none, no leaf."""
    return map(leaf, _shares(items, leaf)) if items else iter(())


def _shares(items: Sequence[T], leaf: Callable[[Sequence[T]], Leaf]) -> Iterator[Sequence[T]]:
    """How the items are dealt out. Each must fit into a leaf by itself."""
    if leaf_bytes(leaf(items)) <= LEAF_BYTES_MAX:
        yield items
        return
    empty_bytes = used_bytes = leaf_bytes(leaf(()))
    share: list[T] = []
    for item in items:
        item_bytes = leaf_bytes(leaf((item,))) - empty_bytes + COMMAS_BYTES
        if share and used_bytes + item_bytes > LEAF_BYTES_MAX:
            yield share
            share, used_bytes = [], empty_bytes
        share.append(item)
        used_bytes += item_bytes
    yield share
