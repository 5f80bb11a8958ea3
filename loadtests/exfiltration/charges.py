"""What the gateway says it charged: read from its admin port, as an operator would."""

import asyncio
import json
import re
import urllib.request
from dataclasses import dataclass

SETTLE_TIMEOUT_S = 10.0
_SAMPLE = re.compile(r"^(weir_\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Charges:
    """Totals since the gateway started."""

    raw_bits: int  # charged at release
    refunded_bits: int  # given back by settlement
    text_bytes: int
    used_bits: int  # of all model accounts, by the ledger

    @property
    def settled_bits(self) -> int:
        """What the budgets lost in the end."""
        return self.raw_bits - self.refunded_bits

    def since(self, before: "Charges") -> "Charges":
        """What was charged between two readings."""
        return Charges(
            raw_bits=self.raw_bits - before.raw_bits,
            refunded_bits=self.refunded_bits - before.refunded_bits,
            text_bytes=self.text_bytes - before.text_bytes,
            used_bits=self.used_bits - before.used_bits,
        )


async def read(admin_port: int) -> Charges:
    """Wait until nothing is in flight and all is settled, then read. Raises TimeoutError.

    A grant that comes while the gateway asks its ledger counts as used for a moment, so two readings must agree.
    """
    used = None
    async with asyncio.timeout(SETTLE_TIMEOUT_S):
        while True:
            status = json.loads(await get(admin_port, "/status.json"))
            samples = _samples(await get(admin_port, "/metrics"))
            before, used = used, sum(one["used_bits"] for one in status["accounts"] if one["owner"] == "model")
            is_idle = not status["answers_in_flight"] and not samples.get(("weir_settle_backlog_answers", ""), 0)
            if is_idle and used == before:
                break
            await asyncio.sleep(0.03)
    return Charges(
        raw_bits=_total(samples, "weir_charged_bits_total", 'code="raw"'),
        refunded_bits=_total(samples, "weir_refunded_bits_total", ""),
        text_bytes=_total(samples, "weir_released_text_bytes_total", ""),
        used_bits=used,
    )


async def get(port: int, path: str) -> str:
    """The body of a GET on loopback."""

    def fetch() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(fetch)


def _samples(text: str) -> dict[tuple[str, str], float]:
    return {(name, labels or ""): float(value) for name, labels, value in _SAMPLE.findall(text)}


def _total(samples: dict[tuple[str, str], float], name: str, label: str) -> int:
    return int(sum(value for (key, labels), value in samples.items() if key == name and label in labels))
