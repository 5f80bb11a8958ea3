"""What the records add up to: what each holder was granted, gave back and let out of each account. Pure.

The gateway keeps these sums in memory and puts them on the record now and then. Here they are made anew from the leaves
alone, and held against what it said; what is wrong is said of the record that is the first to show it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.record import (
    Closed,
    Forfeited,
    Leaf,
    LeaseClosed,
    LeaseGranted,
    Opened,
    Recovered,
    Released,
    Renewed,
    Settled,
    Started,
    Stopped,
    Tally,
)

Sums = Counter[str]  # bits by account


@dataclass(slots=True)
class Lease:
    """What was debited for a holder, and what went back, by account."""

    holder: str
    bits: dict[str, int]
    returned: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Account:
    """Over all holders."""

    granted_bits: int = 0
    returned_bits: int = 0
    spent_bits: int = 0
    open_leases: int = 0

    @property
    def debited_bits(self) -> int:
        """What a ledger that has forgotten nothing says of these leases."""
        return self.granted_bits - self.returned_bits

    @property
    def unspent_bits(self) -> int:
        """Granted, and neither given back nor known to have left. It counts as spent all the same."""
        return self.debited_bits - self.spent_bits


@dataclass(slots=True)
class _Holder:
    granted: Sums = field(default_factory=Counter)
    returned: Sums = field(default_factory=Counter)
    spent: Sums = field(default_factory=Counter)
    stopped: bool = False
    successor: str | None = None  # after it forfeited what it had

    def room_bits(self, account: str) -> int:
        return self.granted[account] - self.returned[account] - self.spent[account]


@dataclass(slots=True)
class _Answer:
    holder: str
    accounts: tuple[str, ...]
    charged_bits: int = 0
    text_bytes: int = 0
    ended: bool = False  # its ending left
    closed: bool = False


class Books:
    """Takes leaves in order. `found` is told of every record that contradicts those before it."""

    def __init__(self, found: Callable[[str], None]) -> None:
        self.leases: dict[str, Lease] = {}
        self.holders: dict[str, _Holder] = {}
        self.answers = 0
        self.released_bits = 0
        self.refunded_bits = 0
        self._answers: dict[str, _Answer] = {}
        self._found = found
        self._take: dict[type[Leaf], Callable[[Any], None]] = {
            Started: lambda leaf: self._begin(leaf.holder),
            Stopped: lambda leaf: self._end(leaf.holder),
            Recovered: lambda leaf: self._end(leaf.holder),
            Forfeited: self._forfeited,
            LeaseGranted: self._granted,
            LeaseClosed: self._lease_closed,
            Tally: self._tally,
            Opened: self._opened,
            Renewed: self._renewed,
            Released: self._released,
            Closed: self._closed,
            Settled: self._settled,
        }

    def take(self, leaf: Leaf) -> None:
        """The next record."""
        take = self._take.get(type(leaf))
        if take is not None:
            take(leaf)

    def accounts(self) -> Mapping[str, Account]:
        """The totals."""
        accounts: dict[str, Account] = {}
        for lease in self.leases.values():
            for name, bits in lease.bits.items():
                account = accounts.setdefault(name, Account())
                account.granted_bits += bits
                account.returned_bits += lease.returned.get(name, 0)
                account.open_leases += name not in lease.returned
        for holder in self.holders.values():
            for name, bits in holder.spent.items():
                accounts.setdefault(name, Account()).spent_bits += bits
        return accounts

    def _begin(self, name: str) -> None:
        if name in self.holders:
            self._found(f"holder {name} begins a second time")
        self.holders[name] = _Holder()

    def _end(self, name: str) -> None:
        self._holder(name).stopped = True

    def _forfeited(self, leaf: Forfeited) -> None:
        holder = self._holder(leaf.holder)
        holder.stopped, holder.successor = True, leaf.successor
        self._begin(leaf.successor)

    def _holder(self, name: str) -> _Holder:
        if name not in self.holders:
            self._found(f"holder {name} never began")
            self.holders[name] = _Holder()
        return self.holders[name]

    def _granted(self, leaf: LeaseGranted) -> None:
        lease = self.leases.setdefault(leaf.lease, Lease(leaf.holder, {}))
        # A lease of very many accounts stands in several records, each of which has others.
        if lease.holder != leaf.holder or lease.returned or lease.bits.keys() & leaf.bits.keys():
            self._found(f"lease {leaf.lease} is granted a second time")
            return
        lease.bits |= leaf.bits
        self._holder(leaf.holder).granted.update(leaf.bits)

    def _lease_closed(self, leaf: LeaseClosed) -> None:
        lease = self.leases.get(leaf.lease)
        if lease is None or lease.holder != leaf.holder:
            self._found(f"lease {leaf.lease} is closed by {leaf.holder}, which never had it")
            return
        holder = self._holder(leaf.holder)
        for account, bits in leaf.returned.items():
            if account in lease.returned:
                self._found(f"lease {leaf.lease} is closed a second time in {account}")
                continue
            if not 0 <= bits <= lease.bits.get(account, -1):
                self._found(
                    f"lease {leaf.lease} gives back {bits} bits to {account}, and had {lease.bits.get(account, 0)}"
                )
            lease.returned[account] = bits
            holder.returned[account] += bits
            self._check_room(leaf.holder, account)

    def _check_room(self, name: str, account: str) -> None:
        room_bits = self.holders[name].room_bits(account)
        if room_bits < 0:
            self._found(
                f"holder {name} has charged and given back {-room_bits} bits more than it was granted of {account}"
            )

    def _tally(self, leaf: Tally) -> None:
        holder = self._holder(leaf.holder)
        for account, bits in leaf.unspent_bits.items():
            room_bits = holder.room_bits(account)
            if bits > room_bits:  # less is what came too late to be used
                self._found(
                    f"holder {leaf.holder} says that {bits} bits of {account} are unspent; its records say {room_bits}"
                )
        for name, lease_bits in leaf.leases.items():
            lease = self.leases.get(name)
            for account, bits in lease_bits.items():
                if lease is None or account in lease.returned or lease.bits.get(account) != bits:
                    self._found(f"holder {leaf.holder} says that lease {name} is open with {bits} bits of {account}")

    def _opened(self, leaf: Opened) -> None:
        holder = self._holder(leaf.holder)
        if holder.stopped:
            self._found(f"answer {leaf.answer} is opened by holder {leaf.holder}, which had ended")
        if leaf.answer in self._answers:
            self._found(f"answer {leaf.answer} is opened a second time")
        self._answers[leaf.answer] = _Answer(leaf.holder, leaf.accounts)
        self.answers += 1

    def _answer(self, name: str, *, closed: bool = False) -> _Answer | None:
        answer = self._answers.get(name)
        if answer is None:
            self._found(f"answer {name} was never opened")
        elif answer.closed and not closed:
            self._found(f"answer {name} goes on after it was closed")
        return answer

    def _renewed(self, leaf: Renewed) -> None:
        answer = self._answer(leaf.answer)
        if answer is not None:
            answer.accounts = leaf.accounts

    def _released(self, leaf: Released) -> None:
        answer = self._answer(leaf.answer)
        if answer is None:
            return
        if answer.ended:
            self._found(f"answer {leaf.answer} goes on after its ending")
        answer.ended = leaf.outcome is not None
        answer.text_bytes += leaf.text_bytes
        self._charge(answer, leaf.charged_bits)

    def _charge(self, answer: _Answer, bits: int) -> None:
        if bits < 0:
            self._found(f"a charge of {bits} bits")
        holder = self._holder(answer.holder)
        if holder.stopped and bits:
            self._found(f"holder {answer.holder} charges {bits} bits after it had ended")
        answer.charged_bits += bits
        self.released_bits += bits
        for account in answer.accounts:
            holder.spent[account] += bits
            self._check_room(answer.holder, account)

    def _closed(self, leaf: Closed) -> None:
        answer = self._answer(leaf.answer)
        if answer is None:
            return
        self._charge(answer, leaf.parting_bits)
        answer.closed = True
        if leaf.charged_bits != answer.charged_bits:
            self._found(
                f"answer {leaf.answer} says it cost {leaf.charged_bits} bits; its releases cost {answer.charged_bits}"
            )
        if leaf.text_bytes < answer.text_bytes:
            self._found(
                f"answer {leaf.answer} says it had {leaf.text_bytes} bytes; its releases had {answer.text_bytes}"
            )
        name = answer.holder
        while (successor := self.holders[name].successor) is not None:
            name = successor  # it closes what was open when everything was forfeited, and counts from there
        for account, bits in leaf.spent_bits.items():
            if bits != self.holders[name].spent[account]:
                self._found(
                    f"holder {name} says it has spent {bits} bits of {account};"
                    f" its records add up to {self.holders[name].spent[account]}"
                )

    def _settled(self, leaf: Settled) -> None:
        answer = self._answer(leaf.answer, closed=True)
        if answer is None:
            return
        if not answer.closed:
            self._found(f"answer {leaf.answer} is settled before it was closed")
        if leaf.refunded_bits < 0 or leaf.charged_bits != answer.charged_bits - leaf.refunded_bits:
            self._found(
                f"answer {leaf.answer} is settled to {leaf.charged_bits} bits by a refund of {leaf.refunded_bits}"
                f" from {answer.charged_bits}"
            )
        answer.charged_bits -= leaf.refunded_bits
        self.refunded_bits += leaf.refunded_bits
        holder = self._holder(answer.holder)
        if not holder.stopped:
            for account in answer.accounts:
                holder.spent[account] -= leaf.refunded_bits
        else:
            self._found(f"answer {leaf.answer} is settled after its holder had ended")
