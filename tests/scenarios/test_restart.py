"""What is spent stays spent: across an orderly stop, across a crash, and in the log as in the ledger."""

from gateway.audit.segments import SegmentLog, leaves
from gateway.ledger.sqlite import SqliteLedger

LIFETIME = "model:m/lifetime/ever"


async def serve(fakes, tmp_path, text, *, orderly):
    """One life of a gateway on real files: one answer, and then its end. Returns what it charged."""
    ledger = SqliteLedger(tmp_path / "ledger.db")
    house = fakes.House(ledger=ledger)
    before = sum(state.debited_bits for state in await ledger.states() if state.account == LIFETIME)
    log = SegmentLog(tmp_path / "audit")
    house.tick._audit = log
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


async def test_after_a_crash_the_ledger_says_at_least_what_left_and_the_lease_is_lost(fakes, tmp_path):
    charged = await serve(fakes, tmp_path, "x" * 300, orderly=False)
    spent = (await debited(tmp_path))[LIFETIME]
    assert spent > charged
    again = await serve(fakes, tmp_path, "y" * 300, orderly=True)
    assert (await debited(tmp_path))[LIFETIME] == spent + again


async def test_the_log_alone_gives_the_ledgers_figures(fakes, tmp_path):
    for number, orderly in enumerate([True, False, True]):
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
