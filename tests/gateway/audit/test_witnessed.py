"""Whether the log was witnessed lately enough: by the files, by both clocks, by each process for itself."""

import pytest

from gateway.audit.note import Checkpoint, Note, Signer
from gateway.audit.quorum import AHEAD_S_MAX, parse
from gateway.audit.witnessed import CONTRADICTED, WITNESSED, Witnessed
from gateway.metrics import Metrics, counted
from policy.refusal import Reason
from policy.rules import Audit, WitnessRule
from tests.gateway.audit.witnesses import CarefulWitness

NOW = 1_000_000
WITHIN_S = 100
LOG = Signer(name="example.com/log", seed=bytes(32))
ONE, TWO = CarefulWitness("one.example/w"), CarefulWitness("two.example/w")
QUORUM = parse(
    f"witness one {ONE.verifier} http://one\nwitness two {TWO.verifier} http://two\ngroup g all one two\nquorum g".encode()
)


class House:
    """A view on real files, with a clock of the test's own."""

    def __init__(self, directory, clock) -> None:
        self.directory = directory
        self.clock = clock
        self.metrics = Metrics()
        self.cuts = 0
        self.logged = []
        self.witnessed = Witnessed(
            Audit(directory=str(directory), witnesses=WitnessRule(policy="w.txt", within_s=WITHIN_S)),
            origin=LOG.name,
            quorum=QUORUM,
            clock=clock,
            metrics=self.metrics,
            lapsed=self.cut,
            log=lambda message, **_: self.logged.append(message),
        )

    def cut(self) -> None:
        self.cuts += 1

    async def look(self):
        await self.witnessed.look()
        return self.witnessed.objection

    def write(self, at_s, *, by=(ONE, TWO), origin=LOG.name) -> bytes:
        text = Checkpoint(origin=origin, size=7, root=bytes(32)).text()
        note = Note(text=text, signatures=(LOG.sign(text), *(w.cosignature(text, at_s=at_s) for w in by)))
        (self.directory / WITNESSED).write_bytes(note.encode())
        return note.encode()


@pytest.fixture
def house(tmp_path, fakes):
    return House(tmp_path, fakes.Clock(wall_s=NOW))


async def test_a_log_that_nobody_was_asked_about_yet_is_served_for_a_while(house):
    assert await house.look() is None
    house.clock.advance(WITHIN_S)
    assert await house.look() is None
    assert (house.cuts, house.logged) == (0, [])
    house.clock.advance(1)
    refused = house.witnessed.refused  # before any look: at once
    assert (refused.reason, refused.retry_after_s) == (Reason.UNWITNESSED, 5)
    assert await house.look() == "the audit log must be witnessed every 100 s, and was never"
    assert (house.cuts, house.logged) == (1, ["nothing may leave"])
    await house.look()
    assert (house.cuts, house.logged) == (2, ["nothing may leave"]), "what began in between is cut, too"


async def test_egress_stops_when_the_last_quorum_is_old_and_goes_on_with_the_next(house):
    house.write(NOW - 40)
    assert await house.look() is None
    assert counted(house.metrics.registry, "weir_audit_witnessed_timestamp_seconds") == NOW - 40
    house.clock.advance(60)
    assert house.witnessed.refused is None
    house.clock.advance(1)
    assert house.witnessed.objection == "the audit log must be witnessed every 100 s, and was last 101 s ago"
    await house.look()
    house.write(NOW + 61)
    assert await house.look() is None
    assert house.logged == ["nothing may leave", "the audit log is witnessed again"]
    assert house.cuts == 1


async def test_an_old_quorum_found_at_the_start_stops_egress_at_once(house):
    house.write(NOW - WITHIN_S - 1)
    assert "was last 101 s ago" in await house.look()


async def test_an_older_file_put_back_is_worth_no_more_than_before(house):
    old = house.write(NOW - 90)
    await house.look()
    house.write(NOW)
    await house.look()
    (house.directory / WITNESSED).write_bytes(old)
    house.clock.advance(50)
    assert await house.look() is None
    house.clock.advance(51)
    assert "101 s ago" in await house.look()


async def test_a_wall_clock_that_is_set_back_makes_no_quorum_younger(house):
    house.write(NOW)
    await house.look()
    house.clock.advance(WITHIN_S + 1)
    house.clock.step_wall(-WITHIN_S)
    assert "101 s ago" in await house.look()


async def test_a_file_that_is_taken_away_gives_no_new_time(house):
    house.write(NOW - 50)
    await house.look()
    (house.directory / WITNESSED).unlink()
    assert await house.look() is None
    house.clock.advance(51)
    assert "101 s ago" in await house.look()


@pytest.mark.parametrize(
    "write",
    [
        lambda house: house.write(NOW, by=(ONE,)),
        lambda house: house.write(NOW, by=(ONE, CarefulWitness("two.example/w", secret="a stranger's"))),
        lambda house: house.write(NOW, origin="example.com/other"),
        lambda house: house.write(NOW + AHEAD_S_MAX + 1),
        lambda house: (house.directory / WITNESSED).write_bytes(b"hello"),
        lambda house: (house.directory / WITNESSED).write_bytes(b"not a checkpoint\n\n" + LOG.sign("x\n").line().encode()),
    ],
    ids=["one is missing", "a stranger", "another log", "the future", "no note", "no checkpoint"],
)  # fmt: skip
async def test_a_file_that_shows_no_quorum_stops_egress(house, write):
    write(house)
    assert (await house.look()).endswith("witnessed shows no quorum of witnesses")
    house.write(NOW)
    assert await house.look() is None


async def test_a_file_that_cannot_be_read_stops_egress(house):
    (house.directory / WITNESSED).mkdir()
    assert "Is a directory" in await house.look()


async def test_a_contradiction_stops_egress_however_new_the_quorum_is(house):
    house.write(NOW)
    assert await house.look() is None
    (house.directory / CONTRADICTED).write_text("one: it has cosigned 9 entries\n")
    assert await house.look() == "a witness contradicts the audit log: one: it has cosigned 9 entries"
    assert house.witnessed.refused is not None
    (house.directory / CONTRADICTED).unlink()
    assert await house.look() is None


async def test_without_witnesses_in_the_policy_everything_is_permitted(house, tmp_path):
    witnessed = Witnessed(
        Audit(directory=str(tmp_path)),
        origin=LOG.name,
        quorum=None,
        clock=house.clock,
        metrics=house.metrics,
        lapsed=house.cut,
        log=print,
    )
    (tmp_path / CONTRADICTED).touch()
    await witnessed.look()
    house.clock.advance(10**9)
    assert (witnessed.refused, witnessed.objection, house.cuts) == (None, None, 0)
