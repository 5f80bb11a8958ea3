"""What this gateway may say now: the claims C1 to C4 of docs/theory.md, from the caps in force and the ledger's figures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from gateway.holdings import Holdings
from gateway.metrics import Registry, counted
from gateway.ports import Clock, Ledger
from gateway.serving import Serving
from policy.claims import Claim


class Claims:
    """Reads; changes nothing."""

    def __init__(
        self,
        *,
        serving: Callable[[], Serving],
        ledger: Ledger,
        held: Callable[[], Awaitable[Holdings]],
        registry: Callable[[], Awaitable[Registry]],
        clock: Clock,
        codes: str,
    ) -> None:
        self._serving = serving
        self._ledger = ledger
        self._held = held
        self._registry = registry
        self._clock = clock
        self._codes = codes

    async def document(self) -> dict[str, Any]:
        """Every claim with its conditions, for people (`text`) and programs (figures)."""
        serving = self._serving()
        held, registry = await self._held(), await self._registry()
        ids = [account.id for account in serving.accounts.all(now_s=self._clock.wall_s())]
        debited = {state.account: state.debited_bits for state in await self._ledger.states(ids)}
        return {
            "now": int(self._clock.wall_s()),
            "policy": serving.policy.digest,
            "codes": self._codes,
            "models": [self._of_model(serving, claim, held, debited, registry) for claim in serving.claims],
        }

    def _of_model(
        self, serving: Serving, claim: Claim, held: Holdings, debited: dict[str, int], registry: Registry
    ) -> dict[str, Any]:
        charged = [self._charged(serving, claim.model, window, held, debited) for window in range(len(claim.caps))]
        return {
            "model": claim.model,
            "theft_bits": claim.theft_bits,
            "theft_compression": float(claim.theft_compression),
            "C1": [{"text": text} for text in claim.transcripts],
            "C2": charged,
            "C3": _observed(registry, claim.model),
            "C4": {
                "text": claim.days,
                "days_at_least": float(claim.own.days_at_least) if claim.own.days_at_least is not None else None,
            },
            "conditions": list(claim.conditions),
        }

    def _charged(
        self, serving: Serving, model: str, index: int, held: Holdings, debited: dict[str, int]
    ) -> dict[str, Any]:
        """C2, from the store: granted bits count as charged, since a crash may have let them leave."""
        account = serving.accounts.of_model(model, now_s=self._clock.wall_s())[index]
        of_account = held.of(account.id)
        bits = max(debited.get(account.counted_in, 0) - of_account.leased_bits - of_account.reserved_bits, 0)
        since = (
            "Since this ledger began"
            if account.expires_s is None
            else f"In the present window of {account.window.name}"
        )
        text = (
            f"{since}, {bits} bits were charged under code {self._codes[:16]}; the probability that a theft of n bits "
            f"succeeded with no more than that is at most 2^({bits} - n)."
        )
        return {"window": account.window.name, "charged_bits": bits, "limit_bits": account.limit_bits, "text": text}


def _observed(registry: Registry, model: str) -> dict[str, Any]:
    """C3: an observation about the traffic since the start, and no guarantee."""
    raw_bits = counted(registry, "weir_charged_bits", model=model)
    settled_bits = raw_bits - counted(registry, "weir_refunded_bits", model=model)
    ratio = raw_bits / settled_bits if settled_bits else None
    shown = f"{ratio:.2f}" if ratio is not None else "none yet"
    text = f"This gateway charged {raw_bits} bits at release and {settled_bits} after settlement; ratio {shown}."
    return {"raw_bits": raw_bits, "settled_bits": settled_bits, "ratio": ratio, "text": text}
