"""How busy the gateway is: a backend makes it work, and a client feels in free requests how slow it has become.

The answers that carry the work say nothing, and what the client asks for meanwhile costs nothing. A gateway that can be
kept from its event loop for longer than a tick has a clock that no tick prices.
"""

import asyncio
from statistics import median

from loadtests.exfiltration import honest
from loadtests.exfiltration.backend import Ask, Wire
from loadtests.exfiltration.channel import CHAT, Channel, Loot, Residual, Scene
from loadtests.exfiltration.client import exchange
from loadtests.exfiltration.information import information_bits

SYMBOLS = 160
SYMBOL_S = 0.12  # one bit
MULES = 2  # streams that carry the work
BURST_BYTES = 700 << 10  # on each of them for each 1: eighty of these stay below the 64 MiB that an answer may have
PING_EVERY_S = 0.004
PLAIN_DELAY_S = 0.05  # where the backend answers pings itself it need not work so hard
HEAD_START_S = 0.3
TOOL = {"type": "function", "function": {"name": "work", "parameters": {}}}
WORK = honest.event(
    {"tool_calls": [{"index": 0, "function": {"arguments": ""}}] * 64}
)  # the dearest to parse, per byte


class Schedule:
    """Which bit is on when. Both ends know when it begins, as thieves who agreed on a time would."""

    def __init__(self, secret: list[int]) -> None:
        self.secret = secret
        self.begin_s = asyncio.get_running_loop().time() + HEAD_START_S

    def index(self, at_s: float) -> int:
        """The position of the bit that is on; may lie outside the secret."""
        return int((at_s - self.begin_s) // SYMBOL_S)

    def bit(self, at_s: float) -> int:
        """The bit that is on; 0 before and after."""
        at = self.index(at_s)
        return self.secret[at] if 0 <= at < len(self.secret) else 0

    async def reach(self, at: int) -> None:
        """Wait until bit number `at` begins."""
        await asyncio.sleep(self.begin_s + at * SYMBOL_S - asyncio.get_running_loop().time())


async def _steal(scene: Scene) -> Loot:
    schedule = Schedule([scene.rng.getrandbits(1) for _ in range(SYMBOLS)])

    async def act(ask: Ask, wire: Wire) -> None:
        if ask.method == "GET":
            await asyncio.sleep(PLAIN_DELAY_S * schedule.bit(asyncio.get_running_loop().time()))
            await wire.send(honest.whole())
        else:
            await _work(schedule, wire)

    scene.backend.act = act
    fields = {"model": "target", "stream": True, "messages": [{"role": "user", "content": "0"}], "tools": [TOOL]}
    work = scene.exit.post(CHAT, fields)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(MULES):
            tasks.create_task(exchange(scene.exit, work, limit_s=SYMBOLS * SYMBOL_S + 5))
        pinging = tasks.create_task(_ping(scene, schedule))
    slowest_s = pinging.result()
    usual_s = median(slowest_s)
    pairs: list[tuple[int, int | None]] = [
        (bit, int(felt_s > usual_s)) for bit, felt_s in zip(schedule.secret, slowest_s, strict=True)
    ]
    ones_s = median(felt_s for bit, felt_s in zip(schedule.secret, slowest_s, strict=True) if bit)
    return Loot(
        sent_bits=SYMBOLS,
        decoded_bits=information_bits(pairs, bits=1),
        responses=MULES,
        note=f"a 1 delays free requests by {1000 * ones_s:.0f} ms",
    )


async def _work(schedule: Schedule, wire: Wire) -> None:
    burst = honest.chunk(WORK * (BURST_BYTES // len(WORK)))
    call = {"index": 0, "id": "x", "function": {"name": "work", "arguments": ""}}
    await wire.send(honest.STREAM_HEAD + honest.chunk(honest.event({"tool_calls": [call]})))
    for at, bit in enumerate(schedule.secret):
        await schedule.reach(at)
        if bit:
            await wire.send(burst)
    await wire.send(b"".join(map(honest.chunk, honest.closing())) + honest.LAST_CHUNK)


async def _ping(scene: Scene, schedule: Schedule) -> list[float]:
    """The longest time that a free request took, for each bit."""
    slowest_s = [0.0] * SYMBOLS
    loop = asyncio.get_running_loop()
    while (at := schedule.index(loop.time())) < SYMBOLS:
        answer = await exchange(scene.exit, scene.exit.get("/v1/models"))
        if at >= 0:
            slowest_s[at] = max(slowest_s[at], answer.last_s - answer.began_s)
        await asyncio.sleep(PING_EVERY_S)
    return slowest_s


CHANNELS = (
    Channel(
        name="load",
        what="how slow free requests become while the backend sends work",
        residual=Residual.TICKS,
        steal=_steal,
        slow=True,
    ),
)
