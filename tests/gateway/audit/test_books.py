"""Sums made anew from the records: whoever signs records that contradict each other is told by the first that does."""

import pytest

from gateway.audit.books import Books
from gateway.record import (
    Closed,
    Forfeited,
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

A, B = "model:m/lifetime/ever", "tenant:t/lifetime/ever"


def started(holder="h"):
    return Started(at_ms=1, holder=holder, version="1", policy="p", codes="c", boot_id="b")


def granted(lease="l", holder="h", **bits):
    return LeaseGranted(at_ms=1, lease=lease, holder=holder, bits=bits or {A: 1000, B: 1000}, fences={})


def closed_lease(lease="l", holder="h", returned=None):
    return LeaseClosed(at_ms=1, lease=lease, holder=holder, returned={A: 0} if returned is None else returned)


def opened(answer="a", holder="h", accounts=(A, B)):
    return Opened(
        at_ms=1, answer=answer, holder=holder, accounts=accounts, tenant="t", model="m", route="/", seed=1, request_bytes=1
    )  # fmt: skip


def released(bits=100, answer="a", outcome=None):
    return Released(at_ms=1, answer=answer, tick=1, idle_ticks=0, text_bytes=10, charged_bits=bits, outcome=outcome)


def closed(charged=100, spent=None, answer="a", parting=0, text_bytes=10):
    spent = {A: charged, B: charged} if spent is None else spent
    return Closed(
        at_ms=1, answer=answer, outcome=None, parting_bits=parting, text_bytes=text_bytes, charged_bits=charged, spent_bits=spent
    )  # fmt: skip


def settled(charged=60, refunded=40, answer="a"):
    return Settled(at_ms=1, answer=answer, code="zstd", charged_bits=charged, refunded_bits=refunded)


def tally(unspent=None, leases=None):
    return Tally(at_ms=1, holder="h", part=0, unspent_bits=unspent or {}, leases=leases or {}, answers=())


BEGUN = [started(), granted()]
DONE = [*BEGUN, opened(), released(), closed(), settled()]


def found(*leaves):
    findings = []
    books = Books(findings.append)
    for leaf in leaves:
        books.take(leaf)
    return findings, books


@pytest.mark.parametrize(
    "leaves",
    [
        [*DONE, closed_lease(returned={A: 940}), closed_lease(returned={B: 0}), Stopped(at_ms=1, holder="h")],
        [*DONE, tally({A: 940, B: 940}, {"l": {A: 1000, B: 1000}}), opened("b"), released(5, "b"), closed(5, {A: 65, B: 65}, "b")],
        [*DONE, settled(50, 10)],
        [*BEGUN, opened(), released(), closed(107, parting=7)],
        [*BEGUN, opened(accounts=(A,)), Renewed(at_ms=1, answer="a", accounts=(B,)), released(), closed(spent={B: 100})],
        [*BEGUN, opened(), released(), Forfeited(at_ms=1, holder="h", successor="g", cause="x"), closed(spent={A: 0, B: 0})],
        [started(), granted(**{A: 1000}), granted(**{B: 1000}), opened(), released(), closed()],
        [*BEGUN, opened(), released(), started("g"), granted("late"), closed_lease(returned={A: 850, B: 850}), Recovered(at_ms=1, holder="h")],
    ],
    ids=["a life", "a tally", "settled twice", "silence", "a window's edge", "forfeited", "a lease in two records", "recovered"],
)  # fmt: skip
def test_what_a_gateway_does_adds_up(leaves):
    findings, _ = found(*leaves)
    assert findings == []


@pytest.mark.parametrize(
    ("leaves", "said"),
    [
        ([*DONE, released()], "answer a goes on after it was closed"),
        ([*BEGUN, opened(), released(outcome="stop"), released()], "goes on after its ending"),
        ([*DONE, closed()], "answer a goes on after it was closed"),
        ([*BEGUN, released()], "answer a was never opened"),
        ([*DONE, opened()], "answer a is opened a second time"),
        ([*BEGUN, opened(holder="x")], "holder x never began"),
        ([*BEGUN, started()], "holder h begins a second time"),
        ([*BEGUN, granted()], "lease l is granted a second time"),
        ([started(), granted(**{A: 1000}), granted(**{A: 5, B: 5})], "lease l is granted a second time"),
        ([started(), started("g"), granted(**{A: 1000}), granted(holder="g", **{B: 5})], "lease l is granted a second time"),
        ([*BEGUN, closed_lease(), granted(**{"model:x": 5})], "lease l is granted a second time"),
        ([*BEGUN, closed_lease("x")], "lease x is closed by h, which never had it"),
        ([*BEGUN, started("g"), closed_lease(holder="g")], "lease l is closed by g, which never had it"),
        ([*BEGUN, closed_lease(), closed_lease()], "lease l is closed a second time in model:m"),
        ([*BEGUN, closed_lease(returned={A: 1001})], "gives back 1001 bits to model:m/lifetime/ever, and had 1000"),
        ([*BEGUN, opened(), released(1001)], "1 bits more than it was granted"),
        ([*DONE, closed_lease(returned={A: 941})], "1 bits more than it was granted"),
        ([*BEGUN, opened(), released(), closed(99, {})], "says it cost 99 bits; its releases cost 100"),
        ([*BEGUN, opened(), released(), closed(text_bytes=9)], "says it had 9 bytes; its releases had 10"),
        ([*BEGUN, opened(), released(), closed(spent={A: 99})], "says it has spent 99 bits"),
        ([*BEGUN, opened(), released(-5)], "a charge of -5 bits"),
        ([*DONE[:-1], settled(61, 40)], "settled to 61 bits by a refund of 40 from 100"),
        ([*BEGUN, opened(), settled()], "settled before it was closed"),
        ([*DONE, tally({A: 941})], "says that 941 bits of model:m/lifetime/ever are unspent; its records say 940"),
        ([*DONE, tally({}, {"l": {A: 999}})], "says that lease l is open with 999 bits"),
        ([*DONE, closed_lease(), tally({}, {"l": {A: 1000}})], "says that lease l is open with 1000 bits"),
        ([*BEGUN, Stopped(at_ms=1, holder="h"), opened()], "opened by holder h, which had ended"),
        ([*BEGUN, opened(), Stopped(at_ms=1, holder="h"), released()], "charges 100 bits after it had ended"),
        ([*BEGUN, opened(), released(), closed(), Stopped(at_ms=1, holder="h"), settled()], "settled after its holder had ended"),
    ],
)  # fmt: skip
def test_what_contradicts_the_records_before_it_is_said(leaves, said):
    findings, _ = found(*leaves)
    assert any(said in finding for finding in findings), findings


def test_the_totals_of_an_account_are_over_all_holders():
    _, books = found(*DONE, closed_lease(returned={A: 900}), started("g"), granted("k", "g", **{A: 500}))
    account = books.accounts()[A]
    assert (account.granted_bits, account.returned_bits, account.spent_bits) == (1500, 900, 60)
    assert (account.debited_bits, account.unspent_bits, account.open_leases) == (600, 540, 1)
    assert books.accounts()[B].open_leases == 1
