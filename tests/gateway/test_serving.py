"""Who asks, and for what: keys by digest, models by the tenant's list."""

import hashlib

import pytest

from gateway.serving import serving
from policy.document import parse
from policy.refusal import Reason, Refused

KEY = "weir-key"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()


@pytest.fixture
def serves(fakes):
    text = fakes.POLICY.format(
        budgets="- {window: lifetime, bytes: 1MiB}", digest=DIGEST, tenant="", schedule="flow", quantum=16,
        meters="[raw]", total="60s",
    )  # fmt: skip
    return serving(parse(text, name="weir.yaml"), parameters={"m": 10**9})


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER  {KEY} "])
def test_a_key_opens_its_tenant(serves, header):
    assert serves.authenticate(header).name == "acme"


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", f"Basic {KEY}", KEY, "Bearer wrong", f"Bearer {DIGEST}", "Bearer \udcff"]
)
def test_any_other_header_is_an_unknown_key_and_is_not_repeated(serves, header):
    refused = serves.authenticate(header)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.UNKNOWN_KEY
    assert "wrong" not in refused.message


def test_a_model_off_the_list_and_a_model_that_does_not_exist_look_alike(serves):
    tenant = serves.policy.tenants["acme"]
    assert serves.model("m", tenant).name == "m"
    refused = serves.model("other", tenant)
    assert refused.reason is Reason.UNKNOWN_MODEL
    assert refused.param == "model"
    assert "other" not in refused.message


def test_w_follows_from_the_parameters_and_the_policys_compression(serves):
    assert serves.accounts.theft_bits("m") == 10**9 * 16 // 4
