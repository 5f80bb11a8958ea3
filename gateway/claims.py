"""What this gateway may say now: the claims C1 to C4 of docs/theory.md, from the caps in force and the ledger's figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.leases import Leases
from gateway.metrics import Metrics
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
        leases: Leases,
        clock: Clock,
        metrics: Metrics,
        codes: str,
    ) -> None:
        self._serving = serving
        self._ledger = ledger
        self._leases = leases
        self._clock = clock
        self._metrics = metrics
        self._codes = codes

    async def document(self) -> dict[str, Any]:
        """Every claim with its conditions, for people (`text`) and programs (figures)."""
        serving = self._serving()
        debited = {state.account: state.debited_bits for state in await self._ledger.states()}
        return {
            "now": int(self._clock.wall_s()),
            "policy": serving.policy.digest,
            "codes": self._codes,
            "models": [self._of_model(serving, claim, debited) for claim in serving.claims],
        }

    def _of_model(self, serving: Serving, claim: Claim, debited: dict[str, int]) -> dict[str, Any]:
        charged = [self._charged(serving, claim.model, window, debited) for window in range(len(claim.caps))]
        return {
            "model": claim.model,
            "theft_bits": claim.theft_bits,
            "theft_compression": float(claim.theft_compression),
            "C1": [{"text": text} for text in claim.transcripts],
            "C2": charged,
            "C3": self._observed(serving, claim.model),
            "C4": {
                "text": claim.days,
                "days_at_least": float(claim.own.days_at_least) if claim.own.days_at_least is not None else None,
            },
            "conditions": list(claim.conditions),
        }

    def _charged(self, serving: Serving, model: str, index: int, debited: dict[str, int]) -> dict[str, Any]:
        """C2, from the store: granted bits count as charged, since a crash may have let them leave."""
        account = serving.accounts.of_model(model, now_s=self._clock.wall_s())[index]
        held_bits = self._leases.purse.balance_bits(account.id) + self._leases.purse.reserved_bits(account.id)
        bits = max(debited.get(account.counted_in, 0) - held_bits, 0)
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

    def _observed(self, serving: Serving, model: str) -> dict[str, Any]:
        """C3: an observation about the traffic of this process, and no guarantee."""
        raw_bits = settled_bits = 0
        for tenant in serving.policy.tenants:
            counted = self._metrics.of(model, tenant)
            raw_bits += counted.charged_so_far
            settled_bits += counted.charged_so_far - counted.refunded_so_far
        ratio = raw_bits / settled_bits if settled_bits else None
        shown = f"{ratio:.2f}" if ratio is not None else "none yet"
        text = f"This process charged {raw_bits} bits at release and {settled_bits} after settlement; ratio {shown}."
        return {"raw_bits": raw_bits, "settled_bits": settled_bits, "ratio": ratio, "text": text}
