"""The straight line of one request: admit -> relay -> parse -> canonicalise -> (tick: charge, record, release) -> settle.

What reaches a backend was built by a codec; what reaches a client was rendered from a release. Nothing else passes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from math import ceil

import msgspec

from gateway.leases import Leases
from gateway.metrics import Metrics
from gateway.ports import (
    Client,
    ClientGone,
    Clock,
    LedgerUnavailable,
    OverLimit,
    TokenCounter,
    Upstream,
    UpstreamFailed,
    UpstreamResponse,
)
from gateway.record import Closed, Opened
from gateway.recount import recounts
from gateway.serving import Serving
from gateway.session import BudgetGone, Session, closing_bits, whole_bits_max
from gateway.settle import Settler
from gateway.tick import Tick
from gateway.wire.dialect import Call, Identity
from gateway.wire.errors import outcome_of_status, refusal_of
from gateway.wire.rejections import REJECTIONS, code_index
from policy.budget import Account, Hold
from policy.canonical import Answer, Malformed
from policy.codelength import BITS_PER_BYTE, choice_bits
from policy.limits import ANSWER_PENDING_BYTES_MAX, CLIENT_ANSWER_S_MAX, FLOW_BLOCK_BYTES, PARSE_BYTES_MAX
from policy.progress import Progress
from policy.refusal import Reason, Refused
from policy.release import Ending, Outcome, Release
from policy.rules import Model, Tenant
from policy.rules import Release as ReleaseRule
from policy.ticks import CHOICE_BITS

REJECTION_BODY_BYTES_MAX = 64 * 1024  # how much of a backend's 4xx is read for its error code
TICKS_MARGIN = 2  # the ticks under way when an answer is opened and when its deadline comes
CUT_S_MAX = 1.0  # for the last word to a client whose answer was cut; then the connection is broken off
RETRY_AFTER_S_MAX = 120  # clients sleep as long as they are told; the honest reset is in the body


class _Rejection(msgspec.Struct):
    code: object = None


class _RejectionBody(msgspec.Struct):
    error: _Rejection


class Relay:
    """Carries requests through. Knows ports only."""

    def __init__(
        self,
        *,
        leases: Leases,
        tick: Tick,
        settler: Settler,
        upstreams: Mapping[str, Upstream],
        counters: Mapping[str, TokenCounter],
        serving: Callable[[], Serving],
        refused: Callable[[], Refused | None],
        clock: Clock,
        metrics: Metrics,
        log: Callable[..., None],
    ) -> None:
        self.upstreams = upstreams
        self.counters = counters
        self._serving = serving
        self._refused = refused  # whether anything may leave at all: asked at every admission
        self._leases = leases
        self._tick = tick
        self._settler = settler
        self._clock = clock
        self._metrics = metrics
        self._log = log
        self._numbers = 0
        self._open: dict[str, Session] = {}  # by answer
        self._deadlines: dict[str, asyncio.Timeout] = {}  # likewise
        self._cut: dict[str, Outcome] = {}  # answers that end because nothing may leave any more, and why not
        self._streams: Counter[str] = Counter()

    @property
    def in_flight(self) -> int:
        """Answers admitted and not ended."""
        return self._streams.total()

    def open_answers(self) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
        """The answers that are open, by the accounts that bear their charges."""
        answers: dict[tuple[str, ...], list[str]] = {}
        for answer, session in self._open.items():
            if not session.hold.void:
                answers.setdefault(_ids(session.hold.accounts), []).append(answer)
        return tuple((accounts, tuple(names)) for accounts, names in answers.items())

    def cut(self, outcome: Outcome) -> None:
        """Nothing may leave any more: every open answer ends now, with an error if its client can still be told."""
        now_s = asyncio.get_running_loop().time()
        for answer, deadline in self._deadlines.items():
            if not deadline.expired():
                self._cut[answer] = outcome
                deadline.reschedule(now_s)

    async def answer(
        self, call: Call, *, serving: Serving, tenant: Tenant, identity: Identity, route: str, client: Client, size: int
    ) -> Refused | None:
        """Answer a sanitised call. A `Refused` was decided before the backend was contacted and nothing was sent."""
        model = serving.policy.models[call.model]
        if self._streams[tenant.name] >= tenant.streams_max:
            message = f"You have {tenant.streams_max} answers open, which is your limit."
            return Refused(reason=Reason.TOO_MANY_STREAMS, message=message, retry_after_s=1)
        if (refused := self._refused()) is not None:
            return refused
        upstream = self.upstreams[model.name]
        self._streams[tenant.name] += 1
        try:
            session = await self._admit(call, serving=serving, tenant=tenant, identity=identity)
            if isinstance(session, Refused):
                return session
            if (refused := self._refused()) is not None:  # since then, while the budget was asked for
                session.hold.close()
                return refused
            self._tick.record(
                Opened(
                    at_ms=self._now_ms(),
                    answer=identity.id,
                    holder=self._leases.holder,
                    accounts=_ids(session.hold.accounts),
                    tenant=tenant.name,
                    model=model.name,
                    route=route,
                    seed=identity.seed,
                    request_bytes=size,
                ),
                content=call.upstream_body,
            )
            await self._carry(session, model, upstream, client)
        finally:
            self._streams[tenant.name] -= 1
        return None

    async def _admit(self, call: Call, *, serving: Serving, tenant: Tenant, identity: Identity) -> Session | Refused:
        model = serving.policy.models[call.model]
        release = serving.policy.release
        ticks_max = ceil((model.timeouts.total_s + CLIENT_ANSWER_S_MAX) / release.tick_s) + TICKS_MARGIN
        whole = not call.stream or release.schedule == "whole"
        least_bits = closing_bits(ticks_max=ticks_max) + BITS_PER_BYTE * release.quantum_bytes
        if whole:
            most_bits = max(whole_bits_max(answer_bytes=call.answer_bytes_max, ticks_max=ticks_max), least_bits)
        else:
            most_bits = least_bits + BITS_PER_BYTE * FLOW_BLOCK_BYTES

        def accounts() -> tuple[Account, ...]:
            return self._accounts(serving, model=model.name, tenant=tenant.name)

        hold = await self._reserve(accounts(), least_bits=least_bits, most_bits=most_bits)
        if isinstance(hold, Refused):
            return hold
        self._numbers += 1
        return Session(
            number=self._numbers,
            identity=identity,
            tenant=tenant.name,
            metrics=self._metrics.of(model.name, tenant.name),
            call=call,
            answer=_answer(call, release),
            whole=whole,
            hold=hold,
            accounts=accounts,
            opened_tick=self._tick.now,
            opened_s=self._clock.monotonic_s(),
            ticks_max=ticks_max,
            surcharge_bits=choice_bits(len(serving.policy.meters)) + CHOICE_BITS,
            changed=self._tick.enlist,
        )

    def _accounts(self, opened: Serving, *, model: str, tenant: str) -> tuple[Account, ...]:
        """Those of the policy in force; of the one the answer was opened under, if model or tenant are gone since."""
        now_s, current = self._clock.wall_s(), self._serving()
        known = tenant in current.policy.tenants and model in current.policy.models
        return (current if known else opened).accounts.of(model=model, tenant=tenant, now_s=now_s)

    async def _reserve(self, accounts: tuple[Account, ...], *, least_bits: int, most_bits: int) -> Hold | Refused:
        try:
            hold = await self._leases.reserve(accounts, least_bits=least_bits, most_bits=most_bits)
        except LedgerUnavailable as fault:
            self._metrics.ledger_errors.inc()
            self._log("ledger unavailable", error=str(fault))
            message = "The budget cannot be checked right now, so nothing may leave."
            return Refused(reason=Reason.LEDGER_UNAVAILABLE, message=message, retry_after_s=5)
        if isinstance(hold, OverLimit):
            return self._over_budget(accounts, hold)
        return hold

    def _over_budget(self, accounts: tuple[Account, ...], over: OverLimit) -> Refused:
        account = next(account for account in accounts if account.id == over.account)
        whose = "Your" if account.owner == "tenant" else "The model's"
        if account.expires_s is None:
            when, retry_after_s = "It does not refill.", RETRY_AFTER_S_MAX
        else:
            when = "The body's resets_at says when it refills."
            retry_after_s = max(1, min(RETRY_AFTER_S_MAX, ceil(account.expires_s - self._clock.wall_s())))
        return Refused(
            reason=Reason.OVER_BUDGET,
            message=f"{whose} egress budget ({account.window.name}) is exhausted. {when}",
            retry_after_s=retry_after_s,
            resets_at_s=account.expires_s,
            account=account,
        )

    async def _carry(self, session: Session, model: Model, upstream: Upstream, client: Client) -> None:
        self._open[session.identity.id] = session
        session.metrics.in_flight.inc()
        try:
            # The backend has its own deadline, at which the answer is ended; this one is for clients that hardly read.
            async with asyncio.timeout(model.timeouts.total_s + CLIENT_ANSWER_S_MAX) as deadline:
                self._deadlines[session.identity.id] = deadline
                try:
                    if session.call.stream:
                        await self._stream(session, model, upstream, client)
                    else:
                        await self._pump(session, model, upstream)
                        await self._write_all(session, client)
                finally:
                    del self._deadlines[session.identity.id]
        except ClientGone:
            pass  # what was released stays charged; leaving the pump has cancelled the backend's work
        except BudgetGone:
            if session.begun:
                client.abort()
            else:
                await client.refuse(Refused(reason=Reason.OVER_BUDGET, message="The egress budget is exhausted."))
        except TimeoutError:
            if session.identity.id in self._cut and session.ending is None:
                await self._break_off(session, client, self._cut[session.identity.id])
            else:
                client.abort()
        finally:
            self._close(session)
            session.metrics.in_flight.dec()

    async def _break_off(self, session: Session, client: Client, outcome: Outcome) -> None:
        """Say what ended first. When it did is the gateway's knowledge and no backend's, so this has no price."""
        ending = Ending(outcome=outcome)
        refused = refusal_of(ending)
        assert refused is not None
        if not session.begun:
            await client.refuse(refused)
            return
        event = session.call.renderer.release(Release(idle_ticks=0, quanta=0, text="", ending=ending))
        with contextlib.suppress(ClientGone, TimeoutError):
            async with asyncio.timeout(CUT_S_MAX):
                await client.write(event, last=True)
        client.abort()  # clients take a clean end for a whole answer

    async def _stream(self, session: Session, model: Model, upstream: Upstream, client: Client) -> None:
        pump = asyncio.create_task(self._pump(session, model, upstream))
        pump.add_done_callback(session.pumped)
        try:
            await self._write_all(session, client)
        finally:
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump

    async def _write_all(self, session: Session, client: Client) -> None:
        call = session.call
        # What names vectors or jobs has no tokens to count.
        recount = None if call.stateful else recounts(self.counters, model=call.model, request=call.upstream_body)
        while session.ending is None:
            release = await session.next()
            refused = refusal_of(release.ending) if release.ending is not None else None
            if not session.begun:
                session.metrics.first_release.observe(self._age_s(session))
                if refused is not None and not release.spoken:
                    if refused.reason is Reason.OVER_BUDGET and session.over is not None:
                        refused = self._over_budget(session.hold.accounts, session.over)  # which budget, and until when
                    await client.refuse(refused)  # nothing has been said yet, so the status can still say it
                    return
                await client.begin(status=call.status, content_type=call.renderer.content_type, stream=call.stream)
                session.begun = True
            if recount is not None:
                release = recount.usage(release)
            await client.write(call.renderer.release(release), last=release.ending is not None)
            if refused is not None:
                client.abort()  # clients take a clean end for a whole answer

    async def _pump(self, session: Session, model: Model, upstream: Upstream) -> None:
        """Feed the session from the backend until its answer is finished, one way or another."""
        answer = session.answer
        try:
            async with asyncio.timeout(model.timeouts.total_s):
                await self._exchange(session, upstream)
        except TimeoutError:
            self._failed(session, "timeout_total")
            answer.end(Outcome.TIMEOUT)
        except UpstreamFailed as fault:
            self._failed(session, fault.kind)
            answer.end(Outcome.TIMEOUT if fault.timeout else Outcome.UPSTREAM_ERROR)
        except Malformed as fault:
            self._failed(session, "malformed", detail=str(fault))
            answer.end(Outcome.UPSTREAM_ERROR)
        session.touch()

    async def _exchange(self, session: Session, upstream: Upstream) -> None:
        call = session.call
        async with upstream.request(
            method=call.upstream_method, path=call.upstream_path, body=call.upstream_body, stream=call.stream
        ) as response:
            if response.status not in (200, 202, call.status):
                await self._rejected(session, response)
            else:
                await self._read(session, response)

    async def _read(self, session: Session, response: UpstreamResponse) -> None:
        expected = "text/event-stream" if session.call.stream else "application/json"
        if response.content_type != expected:
            raise Malformed(f"content type is not {expected}")
        decoder, answer = session.call.decoder, session.answer
        while chunk := await response.read():
            self._metrics.received_wire.inc(len(chunk))
            for start in range(0, len(chunk), PARSE_BYTES_MAX):
                if start:
                    await asyncio.sleep(0)  # others first: what is dear to parse must not be felt by other clients
                for event in decoder.feed(chunk[start : start + PARSE_BYTES_MAX]):
                    answer.add(event)
                if answer.finished:
                    return
            session.touch()
            if answer.pending_bytes > ANSWER_PENDING_BYTES_MAX and not session.whole:
                await session.room(pending_bytes_max=ANSWER_PENDING_BYTES_MAX)
        for event in decoder.eof():
            answer.add(event)

    async def _rejected(self, session: Session, response: UpstreamResponse) -> None:
        body = b""
        while len(body) <= REJECTION_BODY_BYTES_MAX and (chunk := await response.read()):
            body += chunk
        code = None
        if len(body) <= REJECTION_BODY_BYTES_MAX:  # beyond it, how much was read depends on how it was split
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                code = msgspec.json.decode(body, type=_RejectionBody).error.code
        outcome = outcome_of_status(response.status, stateful=session.call.stateful)
        if outcome is Outcome.UPSTREAM_ERROR:
            self._failed(session, f"status_{response.status // 100}xx")
        numbers = (code_index(REJECTIONS, code),) if outcome is Outcome.REJECTED else None
        session.answer.end(outcome, numbers=numbers)

    def _close(self, session: Session) -> None:
        """Whatever happened, once: silence that was left is charged, then the record, the unused hold, the settlement."""
        cut = self._cut.pop(session.identity.id, None)
        outcome = session.ending.outcome if session.ending is not None else cut
        parting_bits = session.part(self._tick.now)
        session.hold.close()
        del self._open[session.identity.id]
        self._tick.record(
            Closed(
                at_ms=self._now_ms(),
                answer=session.identity.id,
                outcome=outcome.value if outcome is not None else None,
                parting_bits=parting_bits,
                text_bytes=len(session.text),
                charged_bits=session.charged_bits,
                spent_bits={account.id: self._leases.purse.spent_bits(account.id) for account in session.hold.accounts},
            ),
            content=session.answer.token_ids or None,
        )
        self._settler.settle(session)
        session.metrics.ended(outcome)
        session.metrics.duration.observe(self._age_s(session))

    def _failed(self, session: Session, kind: str, **detail: str) -> None:
        self._metrics.backend_errors.labels(session.call.model, kind).inc()
        self._log("backend failed", kind=kind, model=session.call.model, answer=session.identity.id, **detail)

    def _age_s(self, session: Session) -> float:
        return self._clock.monotonic_s() - session.opened_s

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)


def _answer(call: Call, release: ReleaseRule) -> Answer:
    if call.steps_max is not None:
        return Progress(steps_max=call.steps_max)
    return Answer(
        quantum_bytes=release.quantum_bytes,
        answer_bytes_max=call.answer_bytes_max,
        tools_declared=call.tools_declared,
        reasoning=call.reasoning,
        paced=release.schedule == "paced",
    )


def _ids(accounts: tuple[Account, ...]) -> tuple[str, ...]:
    return tuple(account.id for account in accounts)
