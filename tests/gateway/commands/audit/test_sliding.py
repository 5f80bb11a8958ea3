"""What was thawed of a sliding window is told from the ledger's figures: never too much, and exactly once something was granted."""

import random

import pytest

from gateway.clock import SystemClock
from gateway.commands.audit.sliding import thawed_bits
from gateway.ledger.memory import MemoryLedger
from gateway.ledger.sqlite import SqliteLedger
from gateway.ports import AccountLimit, Wanted
from policy.budget import Step
from policy.quantity import window

SERIES = "model:m/sliding 1d"
STEPS = window("sliding 1d").steps
LIMIT_BITS = 10**6


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request, tmp_path):
    if request.param == "memory":
        return MemoryLedger(clock=SystemClock())
    return SqliteLedger(tmp_path / "ledger.db")


def account(number: int) -> str:
    return f"{SERIES}/{number}"


async def grant(ledger, number: int, lease: str, bits: int) -> None:
    step = Step(series=SERIES, number=number, steps=STEPS)
    await ledger.register([AccountLimit(account=account(number), limit_bits=LIMIT_BITS, step=step)])
    await ledger.grant(lease=lease, holder="h", wanted={account(number): Wanted(least_bits=1, most_bits=bits)})


async def thawed(ledger) -> int:
    return thawed_bits(await ledger.states(), await ledger.leases(count_max=10**6)).get(SERIES, 0)


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_was_granted_given_back_and_slid_out_only_thaws_are_counted(ledger, seed):
    chance = random.Random(seed)
    number, leases, total_bits = 100, [], 0
    await grant(ledger, number, "first", 10)
    for turn in range(120):
        act = chance.choice(["grant", "grant", "grant", "return", "slide", "thaw"])
        if act == "grant":
            at = number - chance.randrange(2) if turn else number
            bits = chance.randrange(1, 500)
            await grant(ledger, max(at, 100), f"{turn}", bits)
            leases.append((f"{turn}", max(at, 100)))
        elif act == "return" and leases:
            lease, at = leases.pop(chance.randrange(len(leases)))
            await ledger.close_lease(lease=lease, holder="h", returned={account(at): chance.randrange(2)})
        elif act == "slide":
            number += chance.choice([1, 1, 3, STEPS])
            await grant(ledger, number, f"slide {turn}", 5)
        elif act == "thaw":
            await ledger.freeze({SERIES: 10**6 + turn})
            bits = chance.randrange(50)
            total_bits += bits
            assert await ledger.thaw(SERIES, lost_bits=bits)
        assert await thawed(ledger) == total_bits
    assert total_bits
    await ledger.close()


async def test_what_an_operator_debited_to_the_whole_window_is_no_thaw(ledger):
    await grant(ledger, 5, "l", 10)
    await ledger.grant(lease="hand", holder="operator:x", wanted={SERIES: Wanted(least_bits=7, most_bits=7)})
    assert await thawed(ledger) == 0
    await ledger.close()


async def test_a_window_whose_name_says_no_length_is_left_alone(ledger):
    step = Step(series="s", number=1, steps=24)
    await ledger.register([AccountLimit(account="s/1", limit_bits=100, step=step)])
    await ledger.freeze({"s": 3})
    await ledger.thaw("s", lost_bits=9)
    assert thawed_bits(await ledger.states(), await ledger.leases()) == {}
    await ledger.close()
