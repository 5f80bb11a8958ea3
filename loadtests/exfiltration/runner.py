"""Runs thefts: each once through the plain proxy, where it must succeed, and once through the gateway."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from loadtests.bench.peer import free_port
from loadtests.exfiltration import backend, passthrough
from loadtests.exfiltration.backend import Backend
from loadtests.exfiltration.channel import Channel, Loot, Scene
from loadtests.exfiltration.client import Exit
from loadtests.exfiltration.gateway import Weir, key_of, running_weir
from loadtests.exfiltration.smollm import ModelMissing
from loadtests.exfiltration.trained import trained_bits
from loadtests.exfiltration.verdict import Row, Verdict, judge, price

CHANNEL_TIMEOUT_S = 120.0  # a theft that hangs is a fault of the suite or of the gateway, and must not hang the run


async def rows(channels: Sequence[Channel], *, directory: Path, seed: int, quick: bool) -> AsyncGenerator[Row, None]:
    """The rows, as they are done. Raises `PeerError` if the gateway does not start or dies."""
    async with AsyncExitStack() as stack:
        # A backend for each way out, so that connections that linger from one cannot disturb the other.
        hidden, plain = [await stack.enter_async_context(backend.running(free_port())) for _ in range(2)]
        plain_port = free_port()
        await stack.enter_async_context(passthrough.running(port=plain_port, upstream_port=plain.port))
        weir = await stack.enter_async_context(running_weir(directory=directory, backend_port=hidden.port))
        for channel in channels:
            yield await _row(
                channel, plain=plain, plain_port=plain_port, hidden=hidden, weir=weir, directory=directory, seed=seed,
                quick=quick,
            )  # fmt: skip


async def _row(
    channel: Channel,
    *,
    plain: Backend,
    plain_port: int,
    hidden: Backend,
    weir: Weir,
    directory: Path,
    seed: int,
    quick: bool,
) -> Row:
    def scene(backend_: Backend, port: int, *, through_gateway: bool) -> Scene:
        return Scene(
            exit=Exit(port=port, key=key_of("thief")),
            backend=backend_,
            rng=random.Random(f"{seed} {channel.name} {through_gateway}"),
            quick=quick,
            directory=directory,
            through_gateway=through_gateway,
            gateway_pid=weir.pid if through_gateway else None,
        )

    try:
        stolen = await _timed(channel, scene(plain, plain_port, through_gateway=False))
        before = await weir.charges()
        began_s = time.monotonic()
        decoded = await _timed(channel, scene(hidden, weir.port, through_gateway=True))
        seconds = time.monotonic() - began_s
        charges = (await weir.charges()).since(before)
    except ModelMissing as missing:
        return _skipped(channel, str(missing))
    except TimeoutError:
        return _failed(channel, f"not over after {CHANNEL_TIMEOUT_S:.0f} s")
    finally:
        plain.act = hidden.act = backend.be_honest
    charged = decoded.charged_bits if decoded.charged_bits is not None else price(channel, charges)
    bits = decoded_bits(decoded)
    fault = decoded.fault
    if charges.used_bits != charges.settled_bits:
        fault = fault or f"metrics say {charges.settled_bits} bits, the ledger {charges.used_bits}"
    verdict, why = judge(
        channel, sent=stolen.sent_bits, stolen=stolen.decoded_bits, sent_gateway=decoded.sent_bits, decoded=bits,
        charged=charged, seconds=seconds, fault=fault,
    )  # fmt: skip
    return Row(
        channel=channel.name,
        what=channel.what,
        residual=channel.residual.value,
        sent_bits=stolen.sent_bits,
        responses=decoded.responses,
        stolen_bits=stolen.decoded_bits,
        stolen_note=stolen.note,
        decoded_bits=bits,
        charged_bits=charged,
        seconds=seconds,
        note=decoded.note,
        verdict=verdict,
        why=why,
    )


async def _timed(channel: Channel, scene: Scene) -> Loot:
    async with asyncio.timeout(CHANNEL_TIMEOUT_S):
        return await channel.steal(scene)


def decoded_bits(loot: Loot) -> float:
    """What the channel's own decoder got, or what a trained one got if that is more."""
    return max(loot.decoded_bits, trained_bits(loot.answers, bits=loot.symbol_bits) if loot.answers else 0.0)


def _skipped(channel: Channel, why: str) -> Row:
    return _empty(channel, Verdict.SKIPPED, why)


def _failed(channel: Channel, why: str) -> Row:
    return _empty(channel, Verdict.FAIL, why)


def _empty(channel: Channel, verdict: Verdict, why: str) -> Row:
    return Row(
        channel=channel.name, what=channel.what, residual=channel.residual.value, sent_bits=0, responses=0,
        stolen_bits=0, stolen_note="", decoded_bits=0, charged_bits=0, seconds=0, note="", verdict=verdict, why=why,
    )  # fmt: skip
