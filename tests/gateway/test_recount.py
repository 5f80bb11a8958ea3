"""Recounted usage is the gateway's own: it does not depend on what a backend claims, and costs no bits."""

from dataclasses import replace

from gateway.record import Released
from gateway.recount import Recount
from policy.release import Ending, Outcome, Release, ToolCall, Usage

REQUEST = b'{"messages":[{"role":"user","content":"one two three"},{"role":"user","content":[{"type":"text","text":"four"}]}]}'


class Words:
    """Counts words."""

    def tokens(self, text):
        return len(text.split())


def release(text, ending=None):
    return Release(idle_ticks=0, quanta=1, text=text, ending=ending)


def test_the_last_release_of_a_whole_answer_carries_the_count_of_all_of_it():
    recount = Recount(Words(), REQUEST)
    first = release("five six ")
    assert recount.usage(first) is first
    last = recount.usage(release("seven", Ending(outcome=Outcome.STOP)))
    assert last.ending.usage == Usage(prompt_tokens=4, completion_tokens=3)


def test_tool_calls_count_as_what_was_said():
    recount = Recount(Words(), b'{"prompt":"a b"}')
    ending = Ending(outcome=Outcome.TOOL_CALLS, tool_calls=(ToolCall(name="f", arguments='{"a": 1}'),))
    assert recount.usage(release("x ", ending)).ending.usage == Usage(prompt_tokens=2, completion_tokens=3)


def test_an_answer_that_is_not_whole_has_no_usage():
    ending = Ending(outcome=Outcome.BUDGET)
    assert Recount(Words(), REQUEST).usage(release("x", ending)).ending.usage is None


async def test_through_the_relay_the_client_sees_the_count_and_the_charge_does_not(fakes):
    # Arrange: the same answer, with the usage recounted and with none.
    def asking(**usage):
        house = fakes.House()
        house.serving = replace(house.serving, models={"m": replace(fakes.RULES, **usage)})
        return house

    recounted, silent = asking(usage_claimed=False), asking(usage=False)
    recounted.relay.counters = {"m": Words()}

    # Act
    async with recounted.running():
        client = await recounted.ask([fakes.said("one two three")])
    async with silent.running():
        await silent.ask([fakes.said("one two three")])

    # Assert
    assert b'"usage":{"prompt_tokens":1,"completion_tokens":3,"total_tokens":4}' in b"".join(client.writes)
    charged = [leaf.charged_bits for leaf in recounted.audit.of(Released)]
    assert charged == [leaf.charged_bits for leaf in silent.audit.of(Released)]
