"""Attempts at the same time, each with its limit."""

import threading
import time

from gateway.doctor.finding import PROBES_AT_ONCE_MAX, Probe, Verdict, examine


def probe(name, act):
    return Probe(kind="k", target=name, how="h", act=act)


def test_attempts_are_made_at_the_same_time_and_reported_in_order():
    together = threading.Barrier(8, timeout=5)

    def act(limit_s):
        together.wait()
        return Verdict.CLOSED, f"{limit_s:g}"

    found = examine([probe(str(number), act) for number in range(8)], limit_s=3.0)
    assert [finding.target for finding in found] == [str(number) for number in range(8)]
    assert {(finding.verdict, finding.detail) for finding in found} == {(Verdict.CLOSED, "3")}


def test_more_attempts_than_threads_are_all_made():
    count = PROBES_AT_ONCE_MAX * 2 + 1
    found = examine([probe(str(number), lambda _: (Verdict.CLOSED, "")) for number in range(count)], limit_s=1.0)
    assert len(found) == count
    assert {finding.verdict for finding in found} == {Verdict.CLOSED}


def test_an_attempt_that_hangs_or_fails_takes_no_other_along():
    def fails(_):
        raise PermissionError(13, "Permission denied")

    begun_s = time.monotonic()
    found = examine(
        [probe("hangs", lambda _: time.sleep(60)), probe("fails", fails), probe("ends", lambda _: (Verdict.OPEN, "x"))],
        limit_s=0.1,
    )
    assert time.monotonic() - begun_s < 10
    assert [finding.verdict for finding in found] == [Verdict.UNTESTED, Verdict.UNTESTED, Verdict.OPEN]
    assert [finding.detail for finding in found] == ["the attempt did not end", "Permission denied", "x"]


def test_nothing_to_try_is_nothing_found():
    assert examine([], limit_s=1.0) == []
