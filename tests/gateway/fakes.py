"""Stand-ins for the ports, all writing one trace; and a house in which the real core is put together around them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from gateway.holdings import Holdings, in_purse
from gateway.leases import Leases
from gateway.ledger.memory import MemoryLedger
from gateway.metrics import Metrics, Registry
from gateway.ports import AuditFailed, ClientGone, Ledger, UpstreamFailed
from gateway.record import Entry
from gateway.refills import Refills
from gateway.relay import Relay
from gateway.serving import Serving, serving
from gateway.session import Session
from gateway.settle import Settler
from gateway.tick import Tick
from gateway.wire import chat, completions
from gateway.wire.dialect import Call, Identity, ModelRules
from policy.budget import Account, Hold, Purse
from policy.canonical import Answer
from policy.document import parse
from policy.progress import Progress
from policy.refusal import Refused
from policy.rules import Policy, Window

TICK_S = 1 / 64  # a power of two: multiples are exact, so a fake clock can stop on the tick itself
DAY_S = 86_400
TURNS = 12  # how often every task may run between two ticks; ports of this file need far fewer

Trace = list[tuple[Any, ...]]


class Clock:
    """Time passes only when somebody sleeps, and then all at once, after everybody had their turns."""

    def __init__(self, *, wall_s: float = 1_000_000.0, monotonic_s: float = 64.0) -> None:
        self._wall_offset_s = wall_s - monotonic_s
        self._monotonic_s = monotonic_s
        self._suspended_s = 0.0
        self.boot = "first boot"

    def wall_s(self) -> float:
        return self._monotonic_s + self._wall_offset_s

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def suspended_s(self) -> float:
        return self._suspended_s

    def boot_id(self) -> str:
        return self.boot

    async def sleep_until(self, deadline_s: float) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)
        self._monotonic_s = max(self._monotonic_s, deadline_s)

    def advance(self, seconds: float) -> None:
        self._monotonic_s += seconds

    def step_wall(self, seconds: float) -> None:
        self._wall_offset_s += seconds

    def suspend(self, seconds: float) -> None:
        self._monotonic_s += seconds
        self._suspended_s += seconds


class AuditLog:
    """Writes what it is given into the trace; fails at the n-th call and at all after it."""

    def __init__(self, trace: Trace, *, fail_at: int | None = None) -> None:
        self.trace = trace
        self.leaves: list[Any] = []
        self.calls = 0
        self.gate: asyncio.Event | None = None
        self._fail_at = fail_at

    async def append(self, entries: Sequence[Entry]) -> None:
        self.calls += 1
        if self._fail_at is not None and self.calls >= self._fail_at:
            self.trace.append(("audit failed",))
            raise AuditFailed("disk full")
        if self.gate is not None:
            await self.gate.wait()
        for entry in entries:
            self.leaves.append(entry.leaf)
            self.trace.append(("record", type(entry.leaf).__name__))

    async def close(self) -> None:
        self.trace.append(("audit closed",))

    def of(self, kind: type) -> list[Any]:
        return [leaf for leaf in self.leaves if isinstance(leaf, kind)]


class Client:
    """Keeps what it was sent. `gone_after` writes it is gone; while `slow` is unset it does not read."""

    def __init__(self, trace: Trace, *, gone_after: int | None = None) -> None:
        self.trace = trace
        self.status: int | None = None
        self.content_type: str | None = None
        self.refused: Refused | None = None
        self.writes: list[bytes] = []
        self.complete = False
        self.aborted = False
        self.slow: asyncio.Event | None = None
        self._gone_after = gone_after

    @property
    def body(self) -> bytes:
        return b"".join(self.writes)

    async def begin(self, *, status: int, content_type: str, stream: bool) -> None:
        self.trace.append(("begin", status))
        self.status, self.content_type = status, content_type

    async def refuse(self, refused: Refused) -> None:
        self.trace.append(("refuse", refused.reason.label))
        self.refused = refused

    async def write(self, data: bytes, *, last: bool) -> None:
        if self._gone_after is not None and len(self.writes) >= self._gone_after:
            raise ClientGone("gone")
        self.trace.append(("write", len(data)))
        self.writes.append(data)
        self.complete = last
        if self.slow is not None:
            await self.slow.wait()

    def abort(self) -> None:
        self.trace.append(("abort",))
        self.aborted = True


Step = bytes | BaseException | Callable[[], Awaitable[None]]


class Upstream:
    """A backend that follows a script: bytes to send, faults to raise, things to wait for."""

    def __init__(self, trace: Trace, steps: Sequence[Step] = (), *, status: int = 200, content_type: str | None = None):
        self.trace = trace
        self.steps = list(steps)
        self.status = status
        self.content_type = content_type
        self.asked: list[dict[str, Any]] = []
        self.left_early = False

    @contextlib.asynccontextmanager
    async def request(self, *, method: str, path: str, body: bytes, stream: bool):
        self.trace.append(("ask", path))
        fields = json.loads(body) if body else {}
        self.asked.append(fields)
        default = "text/event-stream" if fields.get("stream") else "application/json"
        if self.steps and isinstance(self.steps[0], UpstreamFailed):
            raise self.steps.pop(0)
        reading = Reading(self.status, self.content_type or default, list(self.steps))
        try:
            yield reading
        finally:
            self.left_early = bool(reading.steps)

    async def reachable(self) -> bool:
        return True


class Reading:
    def __init__(self, status: int, content_type: str, steps: list[Step]) -> None:
        self.status = status
        self.content_type = content_type
        self.steps = steps

    async def read(self) -> bytes:
        while self.steps:
            step = self.steps.pop(0)
            if isinstance(step, bytes):
                return step
            if isinstance(step, BaseException):
                raise step
            await step()
        return b""


class Meter:
    """Charges every text so many bits a byte."""

    digest = "00"

    def __init__(self, bits_per_byte: int, name: str = "zstd") -> None:
        self.name = name
        self._bits_per_byte = bits_per_byte

    def text_bits(self, text: bytes) -> int:
        return self._bits_per_byte * len(text)


class TracingPurse(Purse):
    """A purse that says when bits leave."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def spend(self, account_id: str, bits: int) -> None:
        super().spend(account_id, bits)
        self.trace.append(("charge", bits))


# Sessions by themselves.

LIFETIME = Window(name="lifetime", duration_s=None)
IDENTITY = Identity(id="abc123", created_s=1_700_000_000, seed=7)
METRICS = Metrics()
RULES = ModelRules(name="m", usage=True, token_ids=False, tokens_max=4096, tokens_default=512)


def account(name: str = "model:m/lifetime/ever", *, limit_bits: int = 1 << 40, expires_s: int | None = None) -> Account:
    window = LIFETIME if expires_s is None else Window(name="1d", duration_s=DAY_S)
    return Account(id=name, owner="model", name="m", window=window, limit_bits=limit_bits, expires_s=expires_s)


def chat_call(*, stream: bool = True, tools: Sequence[str] = (), tokens: int = 512, rules: ModelRules = RULES) -> Call:
    """A sanitised chat call, made by the real codec from a client's bytes."""
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    if tools:
        body["tools"] = [{"type": "function", "function": {"name": name}} for name in tools]
    return _call(chat, body | _common(stream, tokens), rules)


def completion_call(*, stream: bool = True, tokens: int = 512, rules: ModelRules = RULES) -> Call:
    return _call(completions, {"model": "m", "prompt": "hi"} | _common(stream, tokens), rules)


def _common(stream: bool, tokens: int) -> dict[str, Any]:
    common: dict[str, Any] = {"stream": stream, "max_tokens": tokens}
    return common | ({"stream_options": {"include_usage": True}} if stream else {})


def _call(dialect: Any, body: dict[str, Any], rules: ModelRules) -> Call:
    request = dialect.parse_request(json.dumps(body).encode())
    assert not isinstance(request, Refused), request
    call = dialect.sanitise(request, rules, IDENTITY, tenant="acme")
    assert isinstance(call, Call), call
    return call


def session(
    *,
    call: Call | None = None,
    purse: Purse | None = None,
    accounts: tuple[Account, ...] | None = None,
    hold_bits: int = 1000,
    quantum_bytes: int = 16,
    whole: bool | None = None,
    ticks_max: int = 1000,
    surcharge_bits: int = 1,
    opened_tick: int = 0,
    number: int = 1,
    changed: Callable[[Session], None] = lambda session: None,
) -> Session:
    """A session on a purse of its own; a purse that is given must already hold enough."""
    call = call or chat_call()
    accounts = accounts or (account(),)
    if purse is None:
        purse = Purse()
        for one in accounts:
            purse.credit(one.id, 1 << 40)
    hold = purse.reserve(accounts, hold_bits)
    assert isinstance(hold, Hold)
    return Session(
        number=number,
        identity=IDENTITY,
        tenant="acme",
        metrics=METRICS.of("m", "acme"),
        call=call,
        answer=Progress(steps_max=call.steps_max)
        if call.steps_max is not None
        else Answer(
            quantum_bytes=quantum_bytes,
            answer_bytes_max=call.answer_bytes_max,
            tools_declared=call.tools_declared,
            reasoning=call.reasoning,
        ),
        whole=not call.stream if whole is None else whole,
        hold=hold,
        accounts=lambda: accounts,
        opened_tick=opened_tick,
        opened_s=0.0,
        ticks_max=ticks_max,
        surcharge_bits=surcharge_bits,
        changed=changed,
    )


# The whole core.

POLICY = """\
listen: 127.0.0.1:8080
admin: 127.0.0.1:9090
models:
  m:
    upstream: http://127.0.0.1:8001
    weights: {{parameters: 1B}}
    theft_compression: 4
    answer_tokens_max: 40000
    timeouts: {{connect: 5s, first_byte: 60s, idle: 30s, total: {total}}}
    budgets:
      {budgets}
tenants:
  acme:
    keys: [sha256:{digest}]
    models: [m]
    {tenant}
release: {{schedule: {schedule}, tick: 15.625ms, quantum: {quantum}B}}
meters: {meters}
ledger: memory
"""


def policy_of(
    *,
    budgets: str = "- {window: lifetime, bytes: 1MiB}",
    tenant: str = "share: 100%",
    schedule: str = "flow",
    quantum: int = 16,
    meters: str = "[raw, zstd]",
    total: str = "600s",
) -> Policy:
    text = POLICY.format(
        budgets=budgets,
        digest="ab" * 32,
        tenant=tenant,
        schedule=schedule,
        quantum=quantum,
        meters=meters,
        total=total,
    )
    policy = parse(text, name="weir.yaml")
    assert isinstance(policy, Policy), policy.render()
    return policy


class House:
    """Relay, tick, leases, settler and codecs, all real, between fake ports that share one trace."""

    def __init__(
        self,
        *,
        policy: Policy | None = None,
        ledger: Ledger | None = None,
        meters: Sequence[Any] = (),
        fail_at: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.trace: Trace = []
        self.clock = clock or Clock()
        self.audit = AuditLog(self.trace, fail_at=fail_at)
        self.ledger = ledger or MemoryLedger(clock=self.clock)
        self.metrics = Metrics()
        self.upstream = Upstream(self.trace)
        self.problems: list[str] = []
        self.tick = Tick(
            clock=self.clock,
            audit=self.audit,
            metrics=self.metrics,
            tick_s=TICK_S,
            usable=lambda: self.leases.usable(),  # noqa: PLW0108  made after the tick
            short=lambda session: self.refills.start(session),  # noqa: PLW0108  made after the tick
        )
        self.leases = Leases(
            ledger=self.ledger, clock=self.clock, record=self.tick.record, flush=self.tick.flush, log=self.log
        )
        self.leases.purse = TracingPurse(self.trace)
        self.refills = Refills(
            leases=self.leases,
            metrics=self.metrics,
            enlist=self.tick.enlist,
            record=self.tick.record,
            clock=self.clock,
            log=self.log,
        )
        self.settler = Settler(meters=meters, clock=self.clock, metrics=self.metrics, record=self.tick.record)
        self.relay = Relay(
            leases=self.leases,
            tick=self.tick,
            settler=self.settler,
            upstreams={"m": self.upstream},
            counters={},
            serving=lambda: self.serving,
            refused=lambda: self.refused,
            clock=self.clock,
            metrics=self.metrics,
            log=self.log,
        )
        self.serving: Serving = serving(policy or policy_of(), parameters={"m": 10**9})
        self.refused: Refused | None = None
        self._ids = 0

    def log(self, message: str, **fields: object) -> None:
        self.problems.append(message)

    async def held(self) -> Holdings:
        return in_purse(self.leases.purse, answers=self.relay.in_flight)

    async def registry(self) -> Registry:
        return self.metrics.registry

    def client(self, **options: Any) -> Client:
        return Client(self.trace, **options)

    def identity(self) -> Identity:
        self._ids += 1
        return Identity(id=f"a{self._ids}", created_s=int(self.clock.wall_s()), seed=self._ids)

    async def ask(
        self, steps: Sequence[Step] | None = None, *, client: Client | None = None, call: Call | None = None
    ) -> Client | Refused:
        """One request from admission to its end."""
        if steps is not None:
            self.upstream.steps = list(steps)
        client = client or self.client()
        refused = await self.relay.answer(
            call or chat_call(rules=self.serving.models["m"]),
            serving=self.serving,
            tenant=self.serving.policy.tenants["acme"],
            identity=self.identity(),
            route="/v1/chat/completions",
            client=client,
            size=10,
        )
        return refused if refused is not None else client

    @contextlib.asynccontextmanager
    async def running(self):
        """Ticks go on inside; a failing tick fails the test, as it ends the process."""
        core = asyncio.create_task(self.tick.run())
        settling = asyncio.create_task(self.settler.run())
        try:
            yield self
            if core.done():
                core.result()
        finally:
            core.cancel()
            settling.cancel()
            await asyncio.gather(core, settling, return_exceptions=True)

    async def ticks(self, count: int) -> None:
        """Let so many ticks' worth of turns pass."""
        for _ in range(count * (TURNS + 2)):
            await asyncio.sleep(0)

    async def used_bits(self, account_id: str) -> int:
        """What the ledger says left or may have left, less what this process knows has not."""
        debited = {state.account: state.debited_bits for state in await self.ledger.states()}
        purse = self.leases.purse
        return debited[account_id] - purse.balance_bits(account_id) - purse.reserved_bits(account_id)


# A backend's words in one plain spelling.


def sse(*bodies: dict[str, Any] | str) -> bytes:
    return b"".join(
        b"data: " + (body if isinstance(body, str) else json.dumps(body)).encode() + b"\n\n" for body in bodies
    )


def delta(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def finish(reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def said(text: str, *, reason: str = "stop") -> bytes:
    """A whole streamed answer."""
    return sse(delta(text), finish(reason), "[DONE]")


def whole_answer(text: str, **more: Any) -> bytes:
    return json.dumps(
        {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}], **more}
    ).encode()


def text_of(body: bytes) -> str:
    """The text that a client reads out of a stream."""
    chunks = [line[6:] for line in body.split(b"\n\n") if line.startswith(b"data: {")]
    choices = [choice for chunk in chunks for choice in json.loads(chunk).get("choices", ())]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


def error_of(body: bytes) -> dict[str, Any] | None:
    last = body.rstrip(b"\n").split(b"\n\n")[-1]
    return json.loads(last.removeprefix(b"data: ")).get("error") if last.startswith(b"data: {") else None
