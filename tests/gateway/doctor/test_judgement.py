"""What an answer, an error or silence proves."""

import errno
from dataclasses import replace

import pytest

from gateway.doctor.finding import Verdict
from gateway.doctor.judgement import Attempt, IcmpError, judged

ATTEMPT = Attempt(target="1.1.1.1", source="10.0.0.2", limit_s=3.0)


def icmp(sender: str, code: int, *, kind: int = 3, version: int = 4) -> IcmpError:
    return IcmpError(version=version, sender=sender, type=kind, code=code)


@pytest.mark.parametrize(
    ("attempt", "verdict"),
    [
        (replace(ATTEMPT, answered=True), Verdict.OPEN),
        # Silence proves something only where an open target would have spoken.
        (ATTEMPT, Verdict.CLOSED),
        (replace(ATTEMPT, answers_expected=False), Verdict.UNTESTED),
        (replace(ATTEMPT, error=errno.ETIMEDOUT), Verdict.CLOSED),
        (replace(ATTEMPT, error=errno.EPERM, answers_expected=False), Verdict.CLOSED),
        (replace(ATTEMPT, error=errno.ENETUNREACH), Verdict.CLOSED),
        (replace(ATTEMPT, error=errno.EHOSTUNREACH), Verdict.CLOSED),
        (replace(ATTEMPT, error=errno.EAFNOSUPPORT), Verdict.CLOSED),
        (replace(ATTEMPT, error=errno.ENOMEM), Verdict.UNTESTED),
        # Whoever says no from there has been reached; nobody listening here is nothing.
        (replace(ATTEMPT, error=errno.ECONNREFUSED), Verdict.OPEN),
        (replace(ATTEMPT, error=errno.ECONNREFUSED, target="127.0.0.1"), Verdict.CLOSED),
        (replace(ATTEMPT, error=errno.ECONNREFUSED, target="10.0.0.2"), Verdict.CLOSED),
        # The target itself, or a filter in its place.
        (replace(ATTEMPT, icmp=icmp("1.1.1.1", 3)), Verdict.OPEN),
        (replace(ATTEMPT, icmp=icmp("10.0.0.1", 3)), Verdict.CLOSED),
        (replace(ATTEMPT, icmp=icmp("10.0.0.1", 13)), Verdict.CLOSED),
        (replace(ATTEMPT, icmp=icmp("10.0.0.1", 10)), Verdict.CLOSED),
        # A router that would have passed it on.
        (replace(ATTEMPT, icmp=icmp("10.0.0.1", 0)), Verdict.OPEN),
        (replace(ATTEMPT, icmp=icmp("203.0.113.7", 0, kind=11)), Verdict.OPEN),
        (replace(ATTEMPT, icmp=icmp("203.0.113.7", 0, kind=12)), Verdict.OPEN),
        # This host's own filter.
        (replace(ATTEMPT, icmp=icmp("10.0.0.2", 3)), Verdict.CLOSED),
        (replace(ATTEMPT, icmp=icmp("127.0.0.1", 0)), Verdict.CLOSED),
        # An error about it outweighs the errno that came with it.
        (replace(ATTEMPT, error=errno.EHOSTUNREACH, icmp=icmp("10.0.0.1", 1)), Verdict.OPEN),
        (replace(ATTEMPT, target="2001:db8::1", icmp=icmp("2001:db8::1", 4, kind=1, version=6)), Verdict.OPEN),
        (replace(ATTEMPT, target="2001:db8::1", icmp=icmp("fd00::1", 4, kind=1, version=6)), Verdict.CLOSED),
        (replace(ATTEMPT, target="2001:db8::1", icmp=icmp("fd00::1", 1, kind=1, version=6)), Verdict.CLOSED),
        (replace(ATTEMPT, target="2001:db8::1", icmp=icmp("fd00::1", 0, kind=3, version=6)), Verdict.OPEN),
    ],
)
def test_an_attempt_is_judged_by_who_answered_and_what(attempt, verdict):
    found, detail = judged(attempt)
    assert found is verdict
    assert detail


def test_a_sender_is_named():
    assert "10.0.0.1" in judged(replace(ATTEMPT, icmp=icmp("10.0.0.1", 13)))[1]
