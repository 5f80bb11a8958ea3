"""The longest records that a policy can lead to: those of an answer name all accounts that bear it, and are of one piece. Pure.

What else names accounts can be dealt out to several records (`parts`). Names, numbers and times are as long as they can get.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gateway.parts import leaf_bytes
from gateway.record import Closed, Leaf, Opened, Renewed
from policy.accounts import Accounts
from policy.limits import LEAF_BYTES_MAX, ROUTE_BYTES_MAX
from policy.release import Outcome
from policy.rules import Policy

FAR_S = 253_402_300_799  # the end of the year 9999: a period's number has as many digits as it will ever have
BITS_END = 2**63 - 1  # what a ledger counts up to
ANSWER = "f" * 24  # what `app` makes up for an answer
HOLDER = "f" * 32
COMMITMENT = "f" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TooLong:
    """An answer of this model to this tenant would have a record that is too long."""

    tenant: str
    model: str
    accounts: int
    record: str  # which
    bytes: int

    def __str__(self) -> str:
        return (
            f"an answer of {self.model} is borne by {self.accounts} accounts (one for every window of the model, of the"
            f" tenant's share in it and of the tenant), whose names make its record `{self.record}` {self.bytes} bytes long;"
            f" a record has at most {LEAF_BYTES_MAX}: use fewer windows or shorter names"
        )


def too_long(policy: Policy) -> Iterator[TooLong]:
    """Of every tenant the worst, if it is too long."""
    for tenant in policy.tenants.values():
        accounts = Accounts(policy, theft_bits=dict.fromkeys(policy.models, 0))
        worst: TooLong | None = None
        for model in sorted(tenant.models):
            names = tuple(account.id for account in accounts.of(model=model, tenant=tenant.name, now_s=FAR_S))
            for leaf in records(names, tenant=tenant.name, model=model):
                size = leaf_bytes(leaf)
                if size > max(LEAF_BYTES_MAX, worst.bytes if worst is not None else 0):
                    kind = str(leaf.__struct_config__.tag)
                    worst = TooLong(tenant=tenant.name, model=model, accounts=len(names), record=kind, bytes=size)
        if worst is not None:
            yield worst


def records(accounts: tuple[str, ...], *, tenant: str, model: str) -> Iterator[Leaf]:
    """The records of an answer that name the accounts that bear it, as long as they can be."""
    at_ms = FAR_S * 1000
    yield Opened(
        at_ms=at_ms,
        answer=ANSWER,
        holder=HOLDER,
        accounts=accounts,
        tenant=tenant,
        model=model,
        route="r" * ROUTE_BYTES_MAX,
        seed=BITS_END,
        request_bytes=BITS_END,
        content=COMMITMENT,
    )
    yield Renewed(at_ms=at_ms, answer=ANSWER, accounts=accounts)
    yield Closed(
        at_ms=at_ms,
        answer=ANSWER,
        outcome=max((outcome.value for outcome in Outcome), key=len),
        parting_bits=BITS_END,
        text_bytes=BITS_END,
        charged_bits=BITS_END,
        spent_bits=dict.fromkeys(accounts, BITS_END),
        content=COMMITMENT,
    )
