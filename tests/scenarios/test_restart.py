"""What is spent stays spent: across an orderly stop, across a crash, and in the log as in the ledger."""

from gateway.audit.segments import SegmentLog, leaves
from gateway.clock import SystemClock
from gateway.ledger.sqlite import SqliteLedger
from gateway.record import Started
from gateway.recovery import recover

LIFETIME = "model:m/lifetime/ever"


async def serve(fakes, tmp_path, text, *, orderly):
    """One life of a gateway on real files: what came before is settled, one answer, and its end. Returns what it charged."""
    ledger = SqliteLedger(tmp_path / "ledger.db")
    clock = SystemClock()
    house = fakes.House(ledger=ledger, clock=fakes.Clock(wall_s=clock.wall_s()))
    log = SegmentLog(tmp_path / "audit")
    await recover(ledger=ledger, audit=log, clock=clock)
    before = sum(state.debited_bits for state in await ledger.states() if state.account == LIFETIME)
    house.tick._audit = log
    at_ms = int(house.clock.wall_s() * 1000)
    house.tick.record(Started(at_ms=at_ms, holder=house.leases.holder, version="", policy="", codes="", boot_id=""))
    await house.leases.refresh()
    async with house.running():
        client = await house.ask([fakes.said(text)])
        await house.ticks(4)
    assert fakes.text_of(client.body) == text
    charged = await house.used_bits(LIFETIME) - before
    if orderly:
        await house.leases.close()
        await house.tick.flush()
    await ledger.close()
    await log.close()
    return charged


async def debited(tmp_path):
    ledger = SqliteLedger(tmp_path / "ledger.db")
    states = {state.account: state.debited_bits for state in await ledger.states()}
    await ledger.close()
    return states


async def test_after_an_orderly_stop_the_ledger_says_exactly_what_left(fakes, tmp_path):
    charged = await serve(fakes, tmp_path, "x" * 300, orderly=True)
    charged += await serve(fakes, tmp_path, "y" * 200, orderly=True)
    assert charged > 8 * 500
    assert set((await debited(tmp_path)).values()) == {charged}


async def test_after_a_crash_the_ledger_says_more_than_what_left_until_the_next_start_proves_it_from_the_log(
    fakes, tmp_path
):
    charged = await serve(fakes, tmp_path, "x" * 300, orderly=False)
    assert (await debited(tmp_path))[LIFETIME] > charged
    again = await serve(fakes, tmp_path, "y" * 300, orderly=True)
    assert (await debited(tmp_path))[LIFETIME] == charged + again


async def test_without_the_log_of_a_crashed_gateway_its_leases_stay_spent(fakes, tmp_path):
    await serve(fakes, tmp_path, "x" * 300, orderly=False)
    spent = (await debited(tmp_path))[LIFETIME]
    (tmp_path / "audit" / "00000000.log").unlink()
    again = await serve(fakes, tmp_path, "y" * 300, orderly=True)
    assert (await debited(tmp_path))[LIFETIME] == spent + again


async def test_the_log_alone_gives_the_ledgers_figures(fakes, tmp_path):
    for number, orderly in enumerate([True, False, True, False, False, True]):
        await serve(fakes, tmp_path, "x" * (100 * number + 50), orderly=orderly)
    folded: dict[str, int] = {}
    for leaf in leaves(tmp_path / "audit"):
        if leaf["type"] == "lease_granted":
            for account, bits in leaf["bits"].items():
                folded[account] = folded.get(account, 0) + bits
        elif leaf["type"] == "lease_closed":
            for account, bits in leaf["returned"].items():
                folded[account] -= bits
    assert folded == await debited(tmp_path)
