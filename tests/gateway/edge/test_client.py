"""A refusal's headers: honest resets, no retries in vain, and nothing of a budget that others share."""

import pytest

import gateway.edge.strict  # noqa: F401  before aiohttp, as everywhere
from gateway.edge.client import http_date, refusal_headers
from policy.budget import Account
from policy.refusal import Reason, Refused
from policy.rules import Window


def over_budget(owner="tenant", *, window=Window(name="1d", duration_s=86_400), retry_after_s=120):  # noqa: B008  frozen
    account = Account(id="x", owner=owner, name="acme", window=window, limit_bits=8_000, expires_s=None)
    return Refused(reason=Reason.OVER_BUDGET, message="No.", retry_after_s=retry_after_s, account=account)


def test_an_exhausted_tenant_budget_is_described_in_full():
    assert refusal_headers(over_budget()) == {
        "Content-Type": "application/json",
        "Retry-After": "120",
        "x-should-retry": "false",
        "RateLimit-Policy": '"1d";q=1000;qu="content-bytes";w=86400',
        "RateLimit": '"1d";r=0;t=120',
        "x-ratelimit-limit-bytes": "1000",
        "x-ratelimit-remaining-bytes": "0",
        "x-ratelimit-reset-bytes": "120s",
    }


def test_a_budget_that_never_refills_names_no_reset():
    headers = refusal_headers(over_budget(window=Window(name="lifetime", duration_s=None), retry_after_s=None))
    assert headers["RateLimit"] == '"lifetime";r=0'
    assert headers["RateLimit-Policy"] == '"lifetime";q=1000;qu="content-bytes"'
    assert "Retry-After" not in headers
    assert "x-ratelimit-reset-bytes" not in headers


def test_how_much_of_a_models_shared_budget_there_is_is_not_a_tenants_to_see():
    headers = refusal_headers(over_budget("model"))
    assert set(headers) == {"Content-Type", "Retry-After", "x-should-retry"}


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.OVER_BUDGET])
def test_any_other_refusal_says_nothing_of_budgets(reason):
    headers = refusal_headers(Refused(reason=reason, message="No."))
    assert set(headers) - {"WWW-Authenticate"} == {"Content-Type"}
    assert ("WWW-Authenticate" in headers) == (reason is Reason.UNKNOWN_KEY)


def test_dates_are_those_of_http():
    assert http_date(784_111_777) == "Sun, 06 Nov 1994 08:49:37 GMT"
