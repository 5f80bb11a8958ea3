"""A thousand requests race for the end of a budget over four workers: never a bit beyond it, and nearly all of it is usable."""

from __future__ import annotations

import asyncio
import time

from tests.e2e.backend import Backend, say
from tests.e2e.conftest import Start
from tests.e2e.processes import Gateway, until
from tests.e2e.wire import chat, request, text_of
from tests.e2e.wire import events as events_of

WORKERS = 4
REQUESTS = 1000
BUDGET_BYTES = 40_000
LIMIT_BITS = 8 * BUDGET_BYTES
USABLE_BITS = LIMIT_BITS * 99 // 100
GIVEN_BACK_S = 15.0  # what idle workers hold goes back within a few refreshes
TEXT = "All budgets end."  # a quantum


class Race:
    """What clients received, by how their request ended."""

    def __init__(self, gateway: Gateway) -> None:
        self.text_bytes = 0
        self.admitted = self.refused = 0
        self._gateway = gateway

    async def all_at_once(self, count: int) -> None:
        await asyncio.gather(*(self._ask() for _ in range(count)))

    async def _ask(self) -> None:
        reader, writer = await asyncio.open_connection(*self._gateway.address)
        writer.write(request(body=chat(stream=True), key=self._gateway.key, headers="Connection: close\r\n"))
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        assert status in (200, 429), head
        if status == 200:
            self.admitted += 1
            self.text_bytes += len(text_of(events_of(_dechunked(body))).encode())
        else:
            self.refused += 1


def _dechunked(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return whole


def test_a_race_for_the_end_of_a_budget_never_passes_it_and_wastes_next_to_nothing(
    backend: Backend, start: Start
) -> None:
    def small(rules: dict) -> None:
        rules["meters"] = ["raw"]
        rules["tenants"]["alice"] |= {
            "budget": {"window": "lifetime", "bytes": f"{BUDGET_BYTES}B"},
            "streams_max": REQUESTS,
        }

    gateway = start(small, arguments=["--workers", str(WORKERS)])
    backend.script = say(TEXT)
    race = Race(gateway)

    # The first thousand take most of it; what they reserved and did not need must not be lost to those that follow.
    asyncio.run(race.all_at_once(REQUESTS))
    deadline_s = time.monotonic() + GIVEN_BACK_S
    while gateway.idle().used_bits() < USABLE_BITS:
        assert time.monotonic() < deadline_s, f"{gateway.account('tenant', 'alice')} and no more is to be had"
        asyncio.run(race.all_at_once(20))

    assert race.refused > 0
    account = gateway.account("tenant", "alice")
    assert 8 * race.text_bytes <= account["used_bits"] <= LIMIT_BITS
    until(lambda: gateway.stop() == 0, what="it drains")
    charged_bits = sum(leaf["charged_bits"] for leaf in gateway.audit() if leaf["type"] == "released")
    charged_bits += sum(leaf["parting_bits"] for leaf in gateway.audit() if leaf["type"] == "closed")
    assert 8 * race.text_bytes <= charged_bits <= LIMIT_BITS
    assert charged_bits >= USABLE_BITS
