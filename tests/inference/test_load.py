"""A thousand requests over sockets: steered or not, read to the end, hung up on, refused. Nothing of them stays."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import random
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp

from inference.kv import KvCache
from inference.limits import QUEUE_REQUESTS_MAX
from inference.request import Sequence

MODEL_ID = "smollm2-135m-instruct"
BURST, CALM = 400, 200  # two bursts, each of more than the queue holds, and between them some at a time
AT_ONCE = 24
GROWTH_BYTES_MAX = 24 << 20
"""The first burst warms up; keys and values of the 600 requests behind it are 500 MB."""


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def alive() -> dict[type, int]:
    """Objects of requests that still exist."""
    gc.collect()
    return {kind: sum(type(o) is kind for o in gc.get_objects()) for kind in (Sequence, KvCache)}


def a_request(number: int, rng: random.Random) -> dict[str, Any]:
    """Short; some prompts occur many times, some once."""
    subject = rng.choice(["tea", "rain", "the sea", f"item {number}"])
    body = {"model": MODEL_ID, "prompt": f"A short note on {subject}:", "max_tokens": rng.randint(1, 3), "seed": number}
    if rng.random() < 0.5:
        scale, layers = rng.choice([0.0, 0.5, 1.0]), rng.choice([[3], [3, 9], [20]])
        apply = rng.choice([None, {"generation": "all"}, {"prompt": {"positions": [-1]}}])
        body["steering"] = {"vectors": [{"id": "v", "op": "add", "scale": scale, "layers": layers, "apply": apply}]}
    return body


async def read(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> str:
    async with session.post(url, json=body) as response:
        document = await response.json()
        return "answered" if response.status == 200 else document["error"]["code"]


async def hang_up_in_the_stream(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> str:
    async with session.post(url, json={**body, "stream": True, "max_tokens": 500}) as response:
        await response.content.readany()
        response.close()
    return "hung up in the stream" if response.status == 200 else "queue_full"


async def hang_up_at_once(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> str:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.02), session.post(url, json={**body, "max_tokens": 500}) as response:
            await response.read()
    return "hung up at once"


async def test_a_thousand_requests_that_end_in_every_way_leave_memory_queue_and_results_as_they_were(client):
    engine, url = client.service.engine, client.base + "/v1/completions"
    vector = {"id": "v", "layer": 3, "vector": [0.05] * 576}
    status, _ = await client.call("POST", "/v1/steering/vectors", vector)
    assert status == 201
    rng = random.Random(6)
    outcomes: collections.Counter[str] = collections.Counter()
    gate = asyncio.Semaphore(AT_ONCE)

    async def gated(work: Coroutine[Any, Any, str]) -> None:
        async with gate:
            outcomes[await work] += 1

    async def ungated(work: Coroutine[Any, Any, str]) -> None:
        outcomes[await work] += 1

    async def at_rest() -> None:
        async with asyncio.timeout(60):
            while engine.active_requests:  # noqa: ASYNC110 - the engine is a thread
                await asyncio.sleep(0.02)
        assert engine.kv_tokens_reserved == 0
        assert engine.prefix_tokens <= 8192 // 8

    reference = {"model": MODEL_ID, "prompt": "The old lighthouse keeper", "max_tokens": 6, "return_token_ids": True}
    reference |= {"seed": 4, "steering": {"vectors": [{"id": "v", "op": "add", "scale": 1.0, "layers": [3]}]}}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        def work(number: int) -> Coroutine[Any, Any, str]:
            how = rng.choices([read, hang_up_in_the_stream, hang_up_at_once], weights=[6, 2, 2])[0]
            return how(session, url, a_request(number, rng))

        _, before = await client.call("POST", "/v1/completions", reference)
        # Warms up: fills the prefix cache, and whatever torch, the event loop and the allocator keep.
        await asyncio.gather(*(ungated(work(number)) for number in range(BURST)))
        await at_rest()
        started_with = resident_bytes()
        await asyncio.gather(*(gated(work(number)) for number in range(BURST, BURST + CALM)))
        await asyncio.gather(*(ungated(work(number)) for number in range(BURST + CALM, 2 * BURST + CALM)))
        await at_rest()
        grown = resident_bytes() - started_with
        _, after = await client.call("POST", "/v1/completions", reference)
        await at_rest()
    assert BURST > QUEUE_REQUESTS_MAX
    assert outcomes.total() == 2 * BURST + CALM
    assert min(outcomes[how] for how in ("answered", "hung up in the stream", "hung up at once", "queue_full")) > 0
    assert set(outcomes) == {"answered", "hung up in the stream", "hung up at once", "queue_full"}
    assert alive() == {Sequence: 0, KvCache: 0}
    assert after["choices"] == before["choices"]
    assert after["steering"] == before["steering"]
    assert grown < GROWTH_BYTES_MAX, dict(outcomes)
