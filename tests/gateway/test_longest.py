"""No policy that is accepted can lead to a record of more than 2 KB, whatever happens under it; others are refused by line."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import app, longest, parts
from gateway.audit.note import Signer
from gateway.authority import Cause
from gateway.config import ConfigError, config_of
from gateway.edge.plans import PLANS
from gateway.longest import ANSWER, BITS_END, COMMITMENT, FAR_S, HOLDER
from gateway.parts import leaf_bytes
from gateway.record import (
    Alive,
    AnyLeaf,
    Fences,
    Forfeited,
    Frozen,
    LicenceAmended,
    LicenceInstalled,
    LicenceLapsed,
    Recovered,
    Refusals,
    Rekeyed,
    Released,
    Sealed,
    Settled,
    Started,
    Stopped,
)
from policy.accounts import Accounts
from policy.forms import BUDGETS_MAX
from policy.limits import LEAF_BYTES_MAX, ROUTE_BYTES_MAX
from policy.public_key import SIGNERS_MAX
from policy.refusal import Reason
from policy.release import Outcome

DIGEST = "f" * 64
AT_MS = FAR_S * 1000
# Long as names, and with long numbers: a sliding window's number is that of its step.
WINDOWS = ("lifetime", "1s", "7s", "59s", "sliding 3601s", "sliding 3153599999s", "sliding 86399s", "1234567891s")


def document(*, model: str, tenant: str, windows: int, own: int, share: bool) -> str:
    lines = [
        "listen: 127.0.0.1:8080",
        "admin: 127.0.0.1:9090",
        "models:",
        f"  {model}:",
        "    upstream: http://127.0.0.1:8001",
        "    weights: {parameters: 1e15}",
        "    theft_compression: 1",
        "    budgets:",
        *(f"      - {{window: {window}, bytes: 1000000TB}}" for window in WINDOWS[:windows]),
        "tenants:",
        f"  {tenant}:",
        f"    keys: [sha256:{DIGEST}]",
        f"    models: [{model}]",
        *(["    share: 50%"] if share else []),
        *(["    budget:"] if own else []),
        *(f"      - {{window: {window}, bytes: 1000000TB}}" for window in WINDOWS[:own]),
    ]
    return "\n".join([*lines, ""])


def accepted(text: str) -> Accounts | None:
    try:
        policy = config_of(text, Path("weir.yaml")).policy
    except ConfigError:
        return None
    return Accounts(policy, theft_bits=dict.fromkeys(policy.models, BITS_END))


def longest_records(accounts: Accounts, *, model: str, tenant: str):
    """One leaf at least of every kind, as long as this policy lets it get, made as the gateway makes it."""
    names = tuple(account.id for account in accounts.of(model=model, tenant=tenant, now_s=FAR_S))
    bits = dict.fromkeys(names, BITS_END)
    counted = {account.counted_in for account in accounts.all(now_s=FAR_S)}
    everywhere = {f"{name[:-1]}{number}": BITS_END for name in [*names, *counted] for number in range(10)}
    who = {"at_ms": AT_MS, "holder": HOLDER}
    signers = tuple(f"{number:064d}" for number in range(SIGNERS_MAX))
    yield from longest.records(names, tenant=tenant, model=model)
    yield from parts.lease_granted(**who, lease=HOLDER, bits=bits, fences=dict.fromkeys(counted, BITS_END))
    yield from parts.lease_closed(**who, lease=HOLDER, returned=bits)
    yield from parts.fences(everywhere, at_ms=AT_MS)
    yield from parts.frozen(seen=everywhere, shown=everywhere, at_ms=AT_MS)
    yield from parts.tallies(
        **who, unspent_bits=everywhere, leases={HOLDER: bits, "f" * 31: bits}, answers=[(names, [ANSWER] * 200)]
    )
    yield parts.policy_loaded(DIGEST, raised=list(everywhere) * 20, at_ms=AT_MS)
    yield Started(**who, version="9" * 32, policy=DIGEST, codes=DIGEST, boot_id="f" * 36, witnesses=DIGEST)
    vkey = str(Signer(name="weir.log/" + "f" * 16, seed=bytes(32)).verifier)
    yield Rekeyed(at_ms=AT_MS, key=vkey, previous=vkey)
    yield from (Stopped(**who), Alive(**who), Recovered(**who))
    yield Forfeited(**who, successor=HOLDER, cause="c" * 200)
    yield LicenceInstalled(
        at_ms=AT_MS, version=BITS_END, not_before_s=FAR_S, expires_s=FAR_S, policy=DIGEST, terms=DIGEST, signers=signers
    )
    yield LicenceAmended(at_ms=AT_MS, policy=DIGEST, signers=signers)
    yield from (LicenceLapsed(at_ms=AT_MS, cause=cause.value) for cause in Cause)
    yield Sealed(at_ms=AT_MS, batch=HOLDER, sha256=DIGEST, bytes=BITS_END)
    for outcome in (*Outcome, None):
        yield Released(
            at_ms=AT_MS, answer=ANSWER, tick=BITS_END, idle_ticks=BITS_END, text_bytes=BITS_END, charged_bits=BITS_END,
            outcome=outcome.value if outcome is not None else None, content=COMMITMENT,
        )  # fmt: skip
    yield Settled(at_ms=AT_MS, answer=ANSWER, code="language_model", charged_bits=BITS_END, refunded_bits=BITS_END)
    yield Refusals(at_ms=AT_MS, counts={reason.label: BITS_END for reason in Reason})


def assert_short(accounts: Accounts, *, model: str, tenant: str) -> None:
    leaves = list(longest_records(accounts, model=model, tenant=tenant))
    assert {type(leaf) for leaf in leaves} == set(get_args(AnyLeaf)), "every kind is there"
    assert max(map(leaf_bytes, leaves)) <= LEAF_BYTES_MAX


def worst(*, windows: int, own: int, share: bool) -> int | None:
    """The longest names, of both model and tenant, with which a policy of so many windows is accepted."""
    for count in range(64, 0, -1):
        name = "n" * count
        accounts = accepted(document(model=name, tenant=name, windows=windows, own=own, share=share))
        if accounts is not None:
            assert_short(accounts, model=name, tenant=name)
            return count
    return None


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("own", [0, 1, 4, BUDGETS_MAX])
@pytest.mark.parametrize("windows", [1, 3, 5, BUDGETS_MAX])
def test_the_worst_policy_that_is_accepted_makes_no_record_of_more_than_2_kb(windows, own, share):
    """And ordinary policies are: three windows with a share and four of the tenant's own, with names of forty letters."""
    count = worst(windows=windows, own=own, share=share)
    if (windows, own) <= (3, 4):
        assert count is not None
        assert count >= 40
    if (windows, own, share) == (BUDGETS_MAX, BUDGETS_MAX, True):
        assert count is not None
        assert count < 30, "with 24 windows it is the names that must be short"


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    model=st.integers(1, 64),
    tenant=st.integers(1, 64),
    windows=st.integers(1, BUDGETS_MAX),
    own=st.integers(0, BUDGETS_MAX),
    share=st.booleans(),
)
def test_whatever_a_policy_names_it_is_refused_or_makes_no_record_of_more_than_2_kb(model, tenant, windows, own, share):
    names = {"model": "m" * model, "tenant": "t" * tenant}
    accounts = accepted(document(**names, windows=windows, own=own, share=share))
    if accounts is not None:
        assert_short(accounts, **names)


def test_a_policy_whose_records_would_be_too_long_is_refused_with_line_and_figures():
    text = document(model="m" * 64, tenant="t" * 64, windows=8, own=8, share=True)
    with pytest.raises(ConfigError) as refused:
        config_of(text, Path("weir.yaml"))
    (line,) = str(refused.value).splitlines()
    number = text.splitlines().index(f"  {'t' * 64}:") + 1
    assert line.startswith(f"weir.yaml:{number}:3: tenants.{'t' * 64}: an answer of {'m' * 64} is borne by 24 accounts")
    size = int(line.split("`closed` ")[1].split(" bytes")[0])
    assert size > LEAF_BYTES_MAX
    assert f"at most {LEAF_BYTES_MAX}: use fewer windows or shorter names" in line


def test_every_tenant_is_named_once_with_its_worst_model():
    policy = config_of(document(model="m", tenant="t", windows=8, own=8, share=True), Path("weir.yaml")).policy
    model = policy.models["m"]
    models = {name: replace(model, name=name) for name in ("a" * 64, "b" * 50, "c")}
    tenants = {
        name: replace(policy.tenants["t"], name=name, models=frozenset(models)) for name in ("t" * 30, "u" * 64, "v")
    }
    short = {"v": replace(tenants["v"], models=frozenset("c"))}
    found = list(longest.too_long(replace(policy, models=models, tenants=tenants | short)))
    assert [(one.tenant, one.model) for one in found] == [("t" * 30, "a" * 64), ("u" * 64, "a" * 64)]


def test_what_is_taken_for_granted_of_records_is_so():
    assert len(ANSWER) == 2 * app.ID_BYTES
    assert max(len(route) for _, route in PLANS) <= ROUTE_BYTES_MAX


def test_a_leaf_that_is_nearly_full_is_not_divided_and_one_that_is_over_full_is():
    for count in range(60, 90):
        many = {f"account {number:03d}": 10**9 + number for number in range(count)}
        leaves = list(parts.fences(many, at_ms=1))
        whole = leaf_bytes(Fences(at_ms=1, fences=many))
        assert len(leaves) == (1 if whole <= LEAF_BYTES_MAX else 2)
        assert {name: fence for leaf in leaves for name, fence in leaf.fences.items()} == many


def test_of_the_limits_that_a_policy_raised_as_many_are_named_as_there_is_room_for():
    for length in (5, 60, 160):
        for count in (0, 1, 9, 10, 11, 99, 100, 101, 5000):
            raised = [f"{number:0{length}d}" for number in range(count)]
            leaf = parts.policy_loaded(DIGEST, raised=raised, at_ms=AT_MS)
            assert list(leaf.raised) == raised[: len(leaf.raised)]
            assert len(leaf.raised) + leaf.raised_more == count
            assert leaf_bytes(leaf) <= LEAF_BYTES_MAX
            assert leaf.raised_more == 0 or leaf_bytes(leaf) > LEAF_BYTES_MAX - length - 10 - len(leaf.raised)


def test_what_a_store_has_forgotten_comes_in_parts_that_fit_a_leaf():
    """A restored backup concerns every account."""
    seen = {f"tenant:{number:0128}": number + 10**15 for number in range(300)}
    leaves = list(parts.frozen(seen=seen, shown=dict.fromkeys(seen, 1), at_ms=1))
    assert {account: fence for leaf in leaves for account, fence in leaf.seen.items()} == seen
    assert all(leaf.shown == dict.fromkeys(leaf.seen, 1) for leaf in leaves)
    assert all(isinstance(leaf, Frozen) and leaf_bytes(leaf) <= LEAF_BYTES_MAX for leaf in leaves)
