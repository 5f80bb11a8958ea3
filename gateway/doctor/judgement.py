"""What an answer, an error or silence proves about the way to a target. Pure.

An answer is a way out, and so is a refusal that came from there: whoever is told no by a far host has told it something. An
ICMP error says who sent it: the target itself, a router on the way, a filter, or this host.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from gateway.doctor.finding import Result, Verdict

FORBIDDEN = frozenset({errno.EPERM, errno.EACCES})
NO_ADDRESS = frozenset(
    {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EINVAL}
)
NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ENONET})

# RFC 792 and 1812, RFC 4443.
TIME_EXCEEDED = {4: 11, 6: 3}
UNREACHABLE = {4: 3, 6: 1}
PROHIBITED = {4: frozenset({9, 10, 13}), 6: frozenset({1, 5, 6})}
PORT_UNREACHABLE = {4: 3, 6: 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class IcmpError:
    """An ICMP error about a packet of ours, as the socket's error queue has it."""

    version: int  # 4 or 6
    sender: str
    type: int
    code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of talking to `target` from `source`."""

    target: str
    source: str | None  # the address that this host would use; None if it has none
    limit_s: float
    answered: bool = False
    error: int | None = None  # errno
    icmp: IcmpError | None = None
    answers_expected: bool = True  # whether an open target would say anything


def judged(attempt: Attempt) -> Result:
    """What it shows."""
    if attempt.answered:
        return Verdict.OPEN, "answered"
    if attempt.icmp is not None:
        return _by_icmp(attempt, attempt.icmp)
    if attempt.error is None or attempt.error == errno.ETIMEDOUT:
        if attempt.answers_expected:
            return Verdict.CLOSED, f"no answer in {attempt.limit_s:g} s"
        return Verdict.UNTESTED, "sent, and nothing came back: it may have left"
    return _by_error(attempt, attempt.error)


def _by_error(attempt: Attempt, error: int) -> Result:
    if error in FORBIDDEN:
        return Verdict.CLOSED, "forbidden on this host"
    if error in NO_ADDRESS:
        return Verdict.CLOSED, "this host has no address of that kind"
    if error in NO_ROUTE:
        return Verdict.CLOSED, "no route"
    if error in (errno.ECONNREFUSED, errno.ECONNRESET):
        if _is_here(attempt.target, attempt):
            return Verdict.CLOSED, "nobody listens"
        return (
            Verdict.OPEN,
            "refused from there (or by a filter that answers in its name: one that drops can be told apart)",
        )
    return Verdict.UNTESTED, errno.errorcode.get(error, str(error))


def _by_icmp(attempt: Attempt, icmp: IcmpError) -> Result:
    if _is_here(icmp.sender, attempt):
        return Verdict.CLOSED, "rejected on this host"
    if icmp.type == TIME_EXCEEDED[icmp.version]:
        return Verdict.OPEN, f"{icmp.sender} passed it on until its time was up: packets leave"
    if icmp.type != UNREACHABLE[icmp.version]:
        return Verdict.OPEN, f"{icmp.sender} answered with an error"
    if icmp.code in PROHIBITED[icmp.version]:
        return Verdict.CLOSED, f"a filter on {icmp.sender} rejects it"
    if icmp.code == PORT_UNREACHABLE[icmp.version]:
        if icmp.sender == attempt.target:
            return Verdict.OPEN, "arrived: the host says that nobody listens"
        return Verdict.CLOSED, f"a filter on {icmp.sender} rejects it"
    return Verdict.OPEN, f"{icmp.sender} took it and knows no way there: no filter held it"


def _is_here(address: str, attempt: Attempt) -> bool:
    return address == attempt.source or address.startswith("127.") or address == "::1"
