"""The straight line of one request, told as one trace."""

import asyncio
import json
from itertools import pairwise

import pytest

from gateway.ports import LedgerUnavailable, UpstreamFailed
from gateway.record import Closed, LeaseGranted, Opened, Released, Renewed, Settled, Started
from gateway.recovery import Estates
from policy.codelength import parting_bits
from policy.limits import ANSWER_PENDING_BYTES_MAX, LEASE_S
from policy.refusal import Reason, Refused
from policy.release import Outcome
from policy.ticks import CHOICE_BITS


async def test_one_request_is_reserved_opened_asked_charged_recorded_and_only_then_written(fakes):
    house = fakes.House()
    async with house.running():
        client = await house.ask([fakes.said("hello")])
    assert house.trace == [
        ("ask", "/v1/chat/completions"),
        ("charge", 8 * 5 + 1 + 1 + 5 + 1 + 1 + 2 + 1 + CHOICE_BITS),
        ("charge", 8 * 5 + 1 + 1 + 5 + 1 + 1 + 2 + 1 + CHOICE_BITS),
        ("record", "LeaseGranted"),
        ("record", "Opened"),
        ("record", "Released"),
        ("begin", 200),
        ("write", len(client.body)),
    ]
    assert client.complete
    assert not client.aborted
    assert client.body.endswith(b"data: [DONE]\n\n")


async def test_what_leaves_in_many_pieces_is_charged_before_it_is_recorded_before_it_is_written_every_time(fakes):
    house = fakes.House()

    async def pause():
        await house.ticks(3)

    steps = [part for _ in range(5) for part in (fakes.sse(fakes.delta("x" * 40)), pause)]
    async with house.running():
        client = await house.ask([*steps, fakes.said("!")])
    assert fakes.text_of(client.body) == "x" * 200 + "!"
    kinds = [event[0] for event in house.trace if event[0] in ("charge", "record", "write")]
    assert house.trace.count(("record", "Released")) == len(client.writes) >= 5
    for index, kind in enumerate(kinds):
        if kind == "write":
            assert kinds[index - 1] == "record"


async def test_the_record_tells_the_whole_story_and_no_word_of_it(fakes):
    house = fakes.House(meters=[fakes.Meter(2)])
    async with house.running():
        await house.ask([fakes.said("hello world")])
        await house.ticks(2)
    (opened,) = house.audit.of(Opened)
    released = house.audit.of(Released)
    (closed,) = house.audit.of(Closed)
    (settled,) = house.audit.of(Settled)
    assert house.audit.of(LeaseGranted)
    assert (opened.tenant, opened.model, opened.answer) == ("acme", "m", "a1")
    assert closed.charged_bits == sum(leaf.charged_bits for leaf in released)
    assert (closed.outcome, closed.text_bytes) == ("stop", 11)
    assert (settled.code, settled.refunded_bits) == ("zstd", 6 * 11)
    assert settled.charged_bits == closed.charged_bits - settled.refunded_bits
    assert not any("hello" in repr(leaf) for leaf in house.audit.leaves)


async def test_the_ledger_minus_the_purse_is_exactly_what_was_charged_and_not_refunded(fakes):
    house = fakes.House(meters=[fakes.Meter(3)])
    async with house.running():
        for text in ("a" * 3, "b" * 700, "c" * 50):
            await house.ask([fakes.said(text)])
        await house.ticks(2)
    spent = sum(leaf.charged_bits for leaf in house.audit.of(Settled))
    for account in house.serving.accounts.all(now_s=house.clock.wall_s()):
        assert await house.used_bits(account.id) == spent


async def test_a_whole_answer_is_one_write(fakes):
    house = fakes.House()
    call = fakes.chat_call(stream=False, rules=house.serving.models["m"])
    async with house.running():
        client = await house.ask([fakes.whole_answer("hello")], call=call)
    assert json.loads(client.body)["choices"][0]["message"]["content"] == "hello"
    assert len(client.writes) == 1
    assert client.content_type == "application/json"
    assert client.complete


async def test_a_whole_answer_longer_than_what_may_wait_arrives(fakes):
    house = fakes.House(policy=fakes.policy_of(budgets="- {window: lifetime, bytes: 4MiB}"))
    call = fakes.chat_call(stream=False, tokens=40_000, rules=house.serving.models["m"])
    text = "x" * (ANSWER_PENDING_BYTES_MAX + 10_000)
    async with house.running():
        client = await house.ask([fakes.whole_answer(text)], call=call)
    assert json.loads(client.body)["choices"][0]["message"]["content"] == text


async def test_a_stream_released_as_a_whole_may_be_longer_than_what_may_wait(fakes):
    """Nothing of it leaves before its end, so waiting for room before reading on would wait for ever."""
    policy = fakes.policy_of(budgets="- {window: lifetime, bytes: 4MiB}", schedule="whole")
    house = fakes.House(policy=policy)
    call = fakes.chat_call(tokens=40_000, rules=house.serving.models["m"])
    parts = [fakes.sse(fakes.delta("x" * 100_000)) for _ in range(3)]
    async with house.running():
        async with asyncio.timeout(2):
            client = await house.ask([*parts, fakes.said("!")], call=call)
    assert fakes.text_of(client.body) == "x" * 300_000 + "!"


async def test_a_backend_is_read_no_faster_than_its_client_reads(fakes):
    policy = fakes.policy_of(budgets="- {window: lifetime, bytes: 4MiB}")
    house = fakes.House(policy=policy)
    call = fakes.chat_call(tokens=40_000, rules=house.serving.models["m"])
    client = house.client()
    client.slow = asyncio.Event()
    house.upstream.steps = [*(fakes.sse(fakes.delta("x" * 100_000)) for _ in range(5)), fakes.said("!")]
    async with house.running():
        asking = asyncio.create_task(house.ask(client=client, call=call))
        await house.ticks(20)
        assert len(client.writes) == 1
        assert len(house.audit.of(Released)) <= 2
        client.slow.set()
        await asking
    assert fakes.text_of(client.body) == "x" * 500_000 + "!"


# Refusals before and after the backend is asked.


async def test_a_refusal_for_want_of_budget_never_touches_a_backend(fakes):
    house = fakes.House(policy=fakes.policy_of(budgets="- {window: 1d, bytes: 10B}"))
    async with house.running():
        refused = await house.ask([fakes.said("hello")])
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.OVER_BUDGET
    assert refused.account.id == "model:m/1d/11"
    assert refused.resets_at_s == 12 * 86_400
    assert 1 <= refused.retry_after_s <= 120
    assert house.upstream.asked == []
    assert house.relay.in_flight == 0


async def test_an_exhausted_lifetime_has_no_reset(fakes):
    house = fakes.House(policy=fakes.policy_of(budgets="- {window: lifetime, bytes: 1B}"))
    async with house.running():
        refused = await house.ask([fakes.said("hello")])
    assert refused.resets_at_s is None
    assert "does not refill" in refused.message


async def test_an_exhausted_tenant_is_told_that_it_is_its_own_budget(fakes):
    house = fakes.House(policy=fakes.policy_of(tenant="budget: {window: 1h, bytes: 10B}"))
    async with house.running():
        refused = await house.ask([fakes.said("hello")])
    assert refused.message.startswith("Your egress budget (1h)")
    assert refused.account.owner == "tenant"


async def test_without_a_ledger_nothing_leaves(fakes):
    class Gone(type(fakes.House().ledger)):
        async def grant(self, **wanted):
            raise LedgerUnavailable("no disk")

    house = fakes.House(ledger=Gone(clock=fakes.Clock()))
    async with house.running():
        refused = await house.ask([fakes.said("hello")])
    assert refused.reason is Reason.LEDGER_UNAVAILABLE
    assert house.upstream.asked == []


async def test_a_tenant_has_at_most_its_number_of_streams_open(fakes):
    policy = fakes.policy_of(tenant="share: 100%\n    streams_max: 1")
    house = fakes.House(policy=policy)
    client = house.client()
    client.slow = asyncio.Event()
    async with house.running():
        first = asyncio.create_task(house.ask([fakes.said("hello")], client=client))
        await house.ticks(3)
        refused = await house.ask([fakes.said("hello")])
        assert refused.reason is Reason.TOO_MANY_STREAMS
        client.slow.set()
        await first
        assert not isinstance(await house.ask([fakes.said("hello")]), Refused)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([UpstreamFailed("connect")], Reason.UPSTREAM_ERROR),
        ([UpstreamFailed("timeout_first_byte", timeout=True)], Reason.UPSTREAM_TIMEOUT),
        ([b"garbage\n\n", b"data: {\n\n"], Reason.UPSTREAM_ERROR),
        ([b""], Reason.UPSTREAM_ERROR),
    ],
)
async def test_a_backend_that_fails_before_it_says_anything_is_an_error_status_that_the_client_can_read(
    fakes, steps, reason
):
    house = fakes.House()
    async with house.running():
        client = await house.ask(steps)
    assert client.refused.reason is reason
    assert client.writes == []
    assert not client.aborted, "an aborted transport never delivers the error that was just made for it"


@pytest.mark.parametrize(
    ("status", "body", "reason", "code"),
    [
        (
            400,
            b'{"error": {"code": "context_length_exceeded", "message": "secret words"}}',
            400,
            "context_length_exceeded",
        ),
        (422, b'{"error": {"code": "anything else"}}', 400, "rejected_by_model_server"),
        (400, b"not json", 400, "rejected_by_model_server"),
        (400, b'{"error": {"code": ' + b"[" * 5000, 400, "rejected_by_model_server"),
        (500, b"{}", 502, None),
        (429, b"{}", 502, None),
        (302, b"{}", 502, None),
    ],
)
async def test_a_backends_error_becomes_one_of_a_closed_list_and_none_of_its_words(fakes, status, body, reason, code):
    house = fakes.House()
    house.upstream.status = status
    async with house.running():
        client = await house.ask([body])
    assert client.refused.reason.value.status == reason
    assert client.refused.code == code
    assert "secret" not in client.refused.message


@pytest.mark.parametrize("cut", [30_000, 65_536, 65_537, 69_000])
async def test_a_backends_long_error_means_the_same_however_its_bytes_were_split(fakes, cut):
    body = b'{"pad": "' + b"x" * 70_000 + b'", "error": {"code": "unknown_vector"}}'
    codes = []
    for steps in ([body], [body[:cut], body[cut:]]):
        house = fakes.House()
        house.upstream.status = 400
        async with house.running():
            client = await house.ask(steps)
        codes.append(client.refused.code)
    assert codes[0] == codes[1]


@pytest.mark.parametrize("content_type", ["text/html", "application/json"])
async def test_a_stream_of_another_content_type_is_no_answer(fakes, content_type):
    house = fakes.House()
    house.upstream.content_type = content_type
    async with house.running():
        client = await house.ask([fakes.said("hello")])
    assert client.refused.reason is Reason.UPSTREAM_ERROR


@pytest.mark.parametrize("fault", [UpstreamFailed("died"), b"data: garbage\n\n", b""])
async def test_a_stream_that_breaks_off_ends_with_an_error_event_and_an_abort(fakes, fault):
    house = fakes.House()
    async with house.running():
        client = await house.ask([fakes.sse(fakes.delta("hello")), fault])
    assert fakes.text_of(client.body) == "hello"
    assert fakes.error_of(client.body)["code"] == "upstream_error"
    assert b"[DONE]" not in client.body
    assert b'"finish_reason":"stop"' not in client.body
    assert client.aborted


@pytest.mark.parametrize("fault", [UpstreamFailed("died"), b""])
async def test_half_of_an_unstreamed_answer_never_leaves(fakes, fault):
    house = fakes.House()
    call = fakes.chat_call(stream=False, rules=house.serving.models["m"])
    async with house.running():
        client = await house.ask([fakes.whole_answer("hello")[:-5], fault], call=call)
    assert client.refused.reason is Reason.UPSTREAM_ERROR
    assert client.writes == []
    assert house.audit.of(Released)[0].text_bytes == 0


async def test_tool_arguments_that_no_utf8_can_hold_do_not_stop_the_gateway(fakes):
    """Any backend, and any honest model that writes one backslash too few, could otherwise end the process."""
    house = fakes.House()
    call = fakes.chat_call(tools=["f"], rules=house.serving.models["m"])
    part = {"index": 0, "id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a":"\\ud800"}'}}
    steps = [
        fakes.sse({"choices": [{"index": 0, "delta": {"tool_calls": [part]}}]}, fakes.finish("tool_calls"), "[DONE]")
    ]
    async with house.running():
        async with asyncio.timeout(5):
            asking = asyncio.create_task(house.ask(steps, call=call))
            await house.ticks(5)
            assert asking.done(), "the tick has died of what a backend said"
            await asking


# Clients that leave.


async def test_a_client_that_goes_away_stays_charged_and_its_backend_is_left(fakes):
    house = fakes.House()

    async def pause():
        await house.ticks(3)

    steps = [part for _ in range(9) for part in (fakes.sse(fakes.delta("x" * 40)), pause)]
    async with house.running():
        client = await house.ask(steps, client=house.client(gone_after=1))
        await house.ticks(2)
    assert house.upstream.left_early
    (closed,) = house.audit.of(Closed)
    assert closed.outcome is None
    released_bits = sum(leaf.charged_bits for leaf in house.audit.of(Released))
    assert closed.charged_bits == released_bits + parting_bits(idle_ticks=0)
    assert released_bits > 8 * 64
    assert len(client.writes) == 1
    assert house.relay.in_flight == 0


async def test_a_client_that_goes_away_gives_back_what_was_only_reserved(fakes):
    house = fakes.House()
    async with house.running():
        await house.ask([fakes.sse(fakes.delta("x" * 40)), fakes.said("y" * 40)], client=house.client(gone_after=0))
    for account in house.serving.accounts.all(now_s=house.clock.wall_s()):
        assert house.leases.purse.reserved_bits(account.id) == 0


async def _silent_until_cancelled(house, asking):
    await house.ticks(5)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await house.ticks(2)


async def test_silence_until_the_client_leaves_has_a_price_too(fakes):
    """Silence is a thing a backend can say. Were it free, colluding clients could ask often and be told by it: of N requests
    that are left after a tick, which k were answered is log2(N choose k) bits, and only the k answers would be charged."""
    house = fakes.House()
    never = asyncio.Event()
    async with house.running():
        asking = asyncio.create_task(house.ask([never.wait]))
        await _silent_until_cancelled(house, asking)
    assert await house.used_bits("model:m/lifetime/ever") > 0


async def test_a_stream_at_its_total_deadline_is_ended_with_an_event_that_has_a_price(fakes):
    house = fakes.House(policy=fakes.policy_of(total="100ms"))
    model = house.serving.policy.models["m"]
    object.__setattr__(model.timeouts, "connect_s", 0.0)  # only their sum is the deadline
    never = asyncio.Event()
    async with house.running():
        client = await house.ask([fakes.sse(fakes.delta("x" * 40)), never.wait])
        await house.ticks(2)
    assert client.aborted
    (closed,) = house.audit.of(Closed)
    assert closed.outcome == "timeout"


class SlowLedger:
    """Any ledger, with a gate before every grant after the first."""

    def __init__(self, ledger):
        self._ledger = ledger
        self.gate = asyncio.Event()
        self.grants = 0

    def __getattr__(self, name):
        return getattr(self._ledger, name)

    async def grant(self, **wanted):
        self.grants += 1
        if self.grants > 1:
            await self.gate.wait()
        return await self._ledger.grant(**wanted)


async def test_a_client_that_leaves_during_a_refill_takes_nothing_with_it(fakes):
    """The refill ends after the answer: what it finds must stay in the purse for others."""
    ledger = SlowLedger(fakes.House().ledger)
    house = fakes.House(policy=fakes.policy_of(budgets="- {window: lifetime, bytes: 700B}"), ledger=ledger)
    never = asyncio.Event()
    async with house.running():
        asking = asyncio.create_task(house.ask([fakes.sse(fakes.delta("x" * 2000)), never.wait]))
        await house.ticks(8)
        assert ledger.grants == 2, "a refill is under way"
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        ledger.gate.set()
        await house.ticks(4)
    assert house.leases.purse.reserved_bits("model:m/lifetime/ever") == 0


# The end of a budget.


async def test_a_stream_is_cut_where_the_budget_ends_with_an_honest_error_and_an_abort(fakes):
    house = fakes.House(policy=fakes.policy_of(budgets="- {window: lifetime, bytes: 1000B}", meters="[raw]"))
    async with house.running():
        client = await house.ask([fakes.said("x" * 5000)])
        await house.ticks(2)
    text = fakes.text_of(client.body)
    assert text == "x" * len(text)
    assert fakes.error_of(client.body)["code"] == "egress_budget_exhausted"
    assert b"[DONE]" not in client.body
    assert client.aborted
    (closed,) = house.audit.of(Closed)
    assert closed.outcome == "budget"
    assert 8 * len(text) <= closed.charged_bits <= 8000


async def test_a_cut_stream_has_used_its_budget_to_the_last_whole_byte(fakes):
    house = fakes.House(policy=fakes.policy_of(budgets="- {window: lifetime, bytes: 1000B}", meters="[raw]"))
    async with house.running():
        await house.ask([fakes.said("x" * 5000)])
        await house.ticks(2)
    assert 8000 - await house.used_bits("model:m/lifetime/ever") < 8 + 2


async def test_half_of_a_whole_answer_that_the_budget_does_not_cover_is_not_sold(fakes):
    house = fakes.House(policy=fakes.policy_of(budgets="- {window: lifetime, bytes: 500B}"))
    call = fakes.chat_call(stream=False, rules=house.serving.models["m"])
    async with house.running():
        client = await house.ask([fakes.whole_answer("x" * 5000)], call=call)
        await house.ticks(2)
    assert client.refused.reason is Reason.OVER_BUDGET
    assert house.audit.of(Closed)[0].text_bytes == 0
    assert house.audit.of(Closed)[0].charged_bits < 64


async def test_a_ledger_that_fails_during_a_stream_ends_it_as_a_spent_budget_does(fakes):
    class Failing(type(fakes.House().ledger)):
        grants = 0

        async def grant(self, **wanted):
            self.grants += 1
            if self.grants > 1:
                raise LedgerUnavailable("no disk")
            return await super().grant(**wanted)

    house = fakes.House(ledger=Failing(clock=fakes.Clock()))
    async with house.running():
        client = await house.ask([fakes.said("x" * 5000)])
    assert fakes.error_of(client.body)["code"] == "egress_budget_exhausted"
    assert 0 < len(fakes.text_of(client.body)) < 5000


# Windows.


def edge_house(fakes, budgets):
    """A house whose clock stands one second before midnight."""
    return fakes.House(policy=fakes.policy_of(budgets=budgets), clock=fakes.Clock(wall_s=10 * 86_400 - 1))


async def test_a_windows_edge_in_the_middle_of_a_stream_moves_it_to_the_new_windows_accounts(fakes):
    house = edge_house(fakes, "- {window: 1d, bytes: 1MiB}")

    async def midnight():
        await house.ticks(4)
        house.clock.advance(2)

    async with house.running():
        client = await house.ask([fakes.sse(fakes.delta("x" * 160)), midnight, fakes.said("y" * 320)])
        await house.ticks(2)
    assert fakes.text_of(client.body) == "x" * 160 + "y" * 320
    before, after = await house.used_bits("model:m/1d/9"), await house.used_bits("model:m/1d/10")
    assert 8 * 160 <= before < 8 * 160 + 40
    assert 8 * 320 <= after < 8 * 320 + 40
    assert house.leases.purse.reserved_bits("model:m/1d/9") == 0
    assert house.leases.purse.reserved_bits("model:m/1d/10") == 0


async def test_an_answer_past_its_windows_edge_asks_a_store_that_is_away_once_a_second_and_goes_on_when_it_is_back(
    fakes,
):
    house = edge_house(fakes, "- {window: 1d, bytes: 1MiB}")
    register, asked = house.ledger.register, []

    async def away(limits):
        asked.append(house.clock.monotonic_s())
        if len(asked) < 4:
            raise LedgerUnavailable("away")
        return await register(limits)

    async def midnight():
        await house.ticks(4)
        house.clock.advance(2)
        house.ledger.register = away

    async with house.running():
        client = await house.ask([fakes.sse(fakes.delta("x" * 160)), midnight, fakes.said("y" * 320)])
    assert fakes.text_of(client.body) == "x" * 160 + "y" * 320
    assert min(after - before for before, after in pairwise(asked)) >= 1


async def test_an_answer_across_a_windows_edge_keeps_its_raw_charge(fakes):
    house = edge_house(fakes, "- {window: 1d, bytes: 1MiB}")
    house.settler._meters = [fakes.Meter(1)]

    async def midnight():
        await house.ticks(4)
        house.clock.advance(2)

    async with house.running():
        await house.ask([fakes.sse(fakes.delta("x" * 160)), midnight, fakes.said("y" * 320)])
        await house.ticks(2)
    assert house.audit.of(Settled) == []


async def test_the_record_says_which_accounts_bear_an_answer_and_when_they_change(fakes):
    house = edge_house(fakes, "- {window: 1d, bytes: 1MiB}")

    async def midnight():
        await house.ticks(4)
        house.clock.advance(2)

    async with house.running():
        await house.ask([fakes.sse(fakes.delta("x" * 160)), midnight, fakes.said("y" * 320)])
        await house.ticks(2)
    (opened,), (renewed,) = house.audit.of(Opened), house.audit.of(Renewed)
    assert (opened.holder, opened.accounts) == (house.leases.holder, ("model:m/1d/9", "tenant:acme/m/1d/9"))
    assert (renewed.answer, renewed.accounts) == (opened.answer, ("model:m/1d/10", "tenant:acme/m/1d/10"))


async def test_a_tally_is_what_the_leaves_before_it_add_up_to(fakes):
    house = edge_house(fakes, "- {window: 1d, bytes: 1MiB}")
    house.tick.record(Started(at_ms=0, holder=house.leases.holder, version="", policy="", codes="", boot_id=""))
    tallied = []

    async def tally():
        await house.ticks(4)
        estate = Estates(house.audit.leaves).found[house.leases.holder]
        unspent = {name: bits for name, bits in estate.unspent_bits.items() if bits}
        tallied.append((house.leases.unspent_bits() == unspent, house.leases.open_leases() == estate.leases))
        assert house.relay.open_answers() == (((*estate.silent["a2"],), ("a2",)),)

    async def midnight():
        await tally()
        house.clock.advance(2)

    async with house.running():
        await house.ask([fakes.said("z" * 100)])
        await house.ask(
            [fakes.sse(fakes.delta("x" * 160)), midnight, fakes.sse(fakes.delta("y" * 99)), tally, fakes.said("y")]
        )
        await house.ticks(2)
    assert tallied == [(True, True)] * 2
    assert house.relay.open_answers() == ()


async def test_when_leases_are_forfeited_open_streams_are_aborted_and_the_next_is_answered(fakes):
    house = fakes.House()

    async def jump():
        await house.ticks(4)
        house.clock.step_wall(-3600)

    async with house.running():
        client = await house.ask([fakes.sse(fakes.delta("x" * 160)), jump, fakes.said("y" * 320)])
        assert fakes.text_of(client.body) == "x" * 160
        assert client.aborted
        assert house.problems == ["leases forfeited"]
        again = await house.ask([fakes.said("hello")])
        assert fakes.text_of(again.body) == "hello"
        await house.ticks(2)
    (closed, _) = house.audit.of(Closed)
    assert (closed.outcome, closed.parting_bits) == (None, 0)
    assert {leaf.answer for leaf in house.audit.of(Settled)} <= {"a2"}


async def test_without_word_from_the_store_leases_end_and_so_do_streams(fakes):
    class Gone(type(fakes.House().ledger)):
        away = False

        async def beat(self, holder):
            raise LedgerUnavailable("away")

        async def grant(self, **wanted):
            if self.away:
                raise LedgerUnavailable("away")
            return await super().grant(**wanted)

    house = fakes.House(ledger=Gone(clock=fakes.Clock()))

    async def outage():
        await house.ticks(4)
        house.ledger.away = True
        house.clock.advance(LEASE_S)

    async with house.running():
        client = await house.ask([fakes.sse(fakes.delta("x" * 160)), outage, fakes.said("y" * 320)])
        assert fakes.text_of(client.body) == "x" * 160
        assert client.aborted
        refused = await house.ask([fakes.said("hello")])
    assert refused.reason is Reason.LEDGER_UNAVAILABLE


async def test_a_stream_whose_new_window_has_nothing_left_is_aborted(fakes):
    house = edge_house(fakes, "- {window: 1d, bytes: 1MiB}")

    async def midnight():
        await house.ticks(4)
        house.clock.advance(2)
        for account in house.serving.accounts.of(model="m", tenant="acme", now_s=house.clock.wall_s()):
            await house.leases.register([account])
            house.ledger._accounts[account.id].debited_bits = account.limit_bits

    async with house.running():
        client = await house.ask([fakes.sse(fakes.delta("x" * 160)), midnight, fakes.said("y" * 320)])
    assert fakes.text_of(client.body) == "x" * 160
    assert b"[DONE]" not in client.body
    assert client.aborted, "a stream without an ending must not look whole"


async def test_a_windows_edge_near_the_end_of_a_lifetime_budget_still_ends_the_stream_honestly(fakes):
    """The old hold has the price of an ending in it: exchanging it must not need the same bits a second time."""
    house = edge_house(fakes, "- {window: lifetime, bytes: 110B}\n      - {window: 1d, bytes: 1MiB}")

    async def midnight():
        await house.ticks(4)
        house.clock.advance(2)

    async with house.running():
        client = await house.ask([fakes.sse(fakes.delta("x" * 64)), midnight, fakes.said("y" * 320)])
    assert fakes.error_of(client.body)["code"] == "egress_budget_exhausted"


async def test_a_ledger_that_is_away_at_a_windows_edge_only_delays_the_stream(fakes):
    class Flaky(type(fakes.House().ledger)):
        away = 0

        async def grant(self, **wanted):
            if self.away:
                self.away -= 1
                raise LedgerUnavailable("no disk")
            return await super().grant(**wanted)

    house = fakes.House(
        policy=fakes.policy_of(budgets="- {window: 1d, bytes: 1MiB}"),
        ledger=Flaky(clock=fakes.Clock()),
        clock=fakes.Clock(wall_s=10 * 86_400 - 1),
    )

    async def midnight():
        await house.ticks(4)
        house.clock.advance(2)
        house.ledger.away = 3

    async with house.running():
        client = await house.ask([fakes.sse(fakes.delta("x" * 160)), midnight, fakes.said("y" * 320)])
    assert fakes.text_of(client.body) == "x" * 160 + "y" * 320


UNLICENSED = Refused(reason=Reason.UNLICENSED, message="not now")


async def test_without_a_licence_nothing_is_reserved_and_no_backend_is_asked(fakes):
    house = fakes.House()
    house.refused = UNLICENSED
    async with house.running():
        assert await house.ask([fakes.said("no")]) is UNLICENSED
    assert house.trace == []


async def test_a_licence_that_ends_while_the_budget_is_asked_for_lets_nothing_through(fakes):
    class Late(fakes.MemoryLedger):
        async def grant(self, **wanted):
            house.refused = UNLICENSED
            return await super().grant(**wanted)

    clock = fakes.Clock()
    house = fakes.House(ledger=Late(clock=clock), clock=clock)
    async with house.running():
        assert await house.ask([fakes.said("no")]) is UNLICENSED
    assert not house.audit.of(Opened)
    assert ("ask", "/v1/chat/completions") not in house.trace
    assert house.leases.purse.reserved_bits("model:m/lifetime/ever") == 0


async def test_a_stream_that_is_cut_says_so_is_charged_for_what_left_and_leaves_its_backend(fakes):
    house = fakes.House()

    async def cut():
        await house.ticks(3)
        house.relay.cut(Outcome.LICENCE)
        await asyncio.Event().wait()

    async with house.running():
        client = await house.ask([fakes.sse(fakes.delta("x" * 40)), cut])
        await house.ticks(2)
    assert client.aborted
    assert fakes.text_of(client.body) == "x" * 32
    assert b'"code":"licence_not_in_force"' in client.writes[-1]
    (closed,) = house.audit.of(Closed)
    assert (closed.outcome, closed.text_bytes) == ("licence", 32)
    assert closed.charged_bits == sum(leaf.charged_bits for leaf in house.audit.of(Released)) + closed.parting_bits
    assert closed.parting_bits > 0
    assert house.relay.in_flight == 0
    house.relay.cut(Outcome.LICENCE)  # nobody is left to be cut


async def test_a_whole_answer_that_is_cut_before_it_is_whole_is_an_error(fakes):
    house = fakes.House()

    async def cut():
        house.relay.cut(Outcome.LICENCE)
        await asyncio.Event().wait()

    call = fakes.chat_call(rules=house.serving.models["m"], stream=False)
    async with house.running():
        client = await house.ask([b'{"choices":', cut], call=call)
    assert client.refused is not None
    assert client.refused.reason is Reason.UNLICENSED
    assert client.writes == []


async def test_a_client_that_does_not_read_cannot_hold_a_cut_answer_open(fakes):
    house = fakes.House()
    client = house.client()
    client.slow = asyncio.Event()

    async def cut():
        await house.ticks(3)
        house.relay.cut(Outcome.LICENCE)
        await asyncio.Event().wait()

    async with house.running(), asyncio.timeout(5):
        await house.ask([fakes.sse(fakes.delta("x" * 40)), cut], client=client)
    assert client.aborted
    assert house.relay.in_flight == 0
