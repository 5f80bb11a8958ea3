"""Every refusal has a status, an OpenAI error type and a code of its own."""

import pytest

from policy.refusal import Reason, Refused

RETRIED_BY_CLIENTS = {408, 409, 429, 500, 502, 503, 504}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_an_http_error_with_a_type_that_fits_its_status(reason):
    shape = reason.value
    assert 400 <= shape.status < 600
    assert (shape.type == "api_error") == (shape.status >= 500)
    assert reason.label == reason.name.lower()


def test_no_two_reasons_share_a_code_so_none_is_an_alias_of_another():
    codes = [reason.value.code for reason in Reason]
    assert len(codes) == len(set(codes)) == len(Reason.__members__)


def test_an_exhausted_budget_is_429_and_an_unknown_key_401():
    assert Reason.OVER_BUDGET.value == (429, "insufficient_quota", "egress_budget_exhausted")
    assert Reason.UNKNOWN_KEY.value.status == 401


def test_a_refusal_says_no_more_than_it_was_given():
    refused = Refused(reason=Reason.INTERNAL, message="Sorry.")
    assert (refused.param, refused.code, refused.retry_after_s, refused.resets_at_s, refused.account) == (None,) * 5
