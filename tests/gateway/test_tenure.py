"""The licence file, watched: what comes into force, what ends it, and what is remembered across restarts and between processes."""

from __future__ import annotations

import base64
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.authority import AMENDMENT_BYTES_MAX, Cause, Change, Licence, Memory, Terms, amend, sign, written
from gateway.metrics import Metrics, counted
from gateway.record import Leaf, LicenceAmended, LicenceInstalled, LicenceLapsed
from gateway.tenure import LOOK_S, REMEMBER_S, Tenure, Unforgetting
from policy.document import parse
from policy.refusal import Reason
from policy.rules import Policy

NOW = 1_000_000
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
PUBLIC = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()


class House:
    """A tenure on real files, with a clock of the test's own."""

    def __init__(self, directory: Path, fakes: Any) -> None:
        self.file = directory / "licence.json"
        self.directory = directory
        self.clock = fakes.Clock(wall_s=NOW)
        self.fakes = fakes
        self.metrics = Metrics()
        self.leaves: list[Leaf] = []
        self.logged: list[str] = []
        self.policy = self._policy()
        self.tenure = self.process()

    def text(self, share: str = "40%") -> str:
        return f"""\
listen: 127.0.0.1:0
admin: 127.0.0.1:0
models:
  m: {{upstream: "http://127.0.0.1:1", weights: {{parameters: 1e9}}, theft_compression: 4, budgets: [{{window: 1d, bytes: 1MB}}]}}
tenants:
  t: {{keys: ["sha256:{"0" * 64}"], models: [m], share: {share}}}
audit: {{directory: "{self.directory}/audit"}}
licence: {{file: "{self.file}", keys: ["weir-signer-ed25519:ann:{PUBLIC}"], threshold: 1, gateway: g}}
"""

    def _policy(self, share: str = "40%") -> Policy:
        policy = parse(self.text(share), name="weir.yaml")
        assert isinstance(policy, Policy), policy.render()
        return policy

    def process(self) -> Tenure:
        return Tenure(
            self.policy,
            clock=self.clock,
            metrics=self.metrics,
            changed=self._changed,
            log=lambda event, **_: self.logged.append(event),
        )

    async def _changed(self, leaf: Leaf) -> None:
        self.leaves.append(leaf)

    def licence(self, *, version: int = 1, begins: int = 0, lasts: int = 1000, policy: Policy | None = None) -> bytes:
        licence = sign(
            Licence(
                terms=Terms(
                    version=version,
                    not_before=NOW + begins,
                    expires=NOW + begins + lasts,
                    gateways=("g",),
                    policy=(policy or self.policy).digest,
                )
            ),
            KEY,
        )
        assert licence is not None
        return written(licence)

    def install(self, **terms: Any) -> None:
        self.file.write_bytes(self.licence(**terms))

    @property
    def cause(self) -> Cause | None:
        denied = self.tenure.denied
        return None if denied is None else denied.cause

    def remembered(self) -> Memory:
        return Unforgetting(self.directory / "audit").recall()


@pytest.fixture
def house(tmp_path: Path, fakes: Any) -> House:
    return House(tmp_path, fakes)


async def test_without_a_licence_nothing_leaves_and_with_one_everything_does(house: House) -> None:
    refused = house.tenure.refused
    assert refused is not None  # before anybody has looked
    await house.tenure.look()
    assert house.cause is Cause.MISSING
    refused = house.tenure.refused
    assert refused is not None
    assert refused.reason is Reason.UNLICENSED
    house.install()
    await house.tenure.look()
    assert house.tenure.refused is None
    assert counted(house.metrics.registry, "weir_licence_ok") == 1
    assert counted(house.metrics.registry, "weir_licence_expires_timestamp_seconds") == NOW + 1000


async def test_every_change_is_told_once(house: House) -> None:
    for _ in range(3):
        await house.tenure.look()
    house.install()
    for _ in range(3):
        await house.tenure.look()
    house.clock.advance(1000)
    for _ in range(3):
        await house.tenure.look()
    assert [(type(leaf), getattr(leaf, "cause", None)) for leaf in house.leaves] == [
        (LicenceLapsed, "missing"),
        (LicenceInstalled, None),
        (LicenceLapsed, "expired"),
    ]
    installed = house.leaves[1]
    assert isinstance(installed, LicenceInstalled)
    assert (installed.version, installed.signers, installed.expires_s) == (1, ("ann",), NOW + 1000)
    assert installed.policy == house.policy.digest


async def test_it_ends_at_its_end_and_not_at_the_next_look(house: House) -> None:
    house.install()
    await house.tenure.look()
    house.clock.advance(999.9)
    assert house.tenure.refused is None
    assert house.tenure._pause_s() == pytest.approx(0.1)
    house.clock.advance(0.1)
    assert house.cause is Cause.EXPIRED
    assert house.tenure._pause_s() == 0


async def test_a_renewal_is_taken_without_a_gap(house: House) -> None:
    house.install()
    await house.tenure.look()
    house.clock.advance(900)
    house.install(version=2, begins=900)
    assert house.tenure.refused is None
    await house.tenure.look()
    house.clock.advance(999)
    assert house.tenure.refused is None
    assert house.remembered().version == 2


async def test_a_file_that_is_being_written_is_no_revocation_but_one_that_stays_broken_is(house: House) -> None:
    house.install()
    await house.tenure.look()
    for wrong in (b"", house.licence(version=2)[:100], None):
        if wrong is None:
            house.file.unlink()
        else:
            house.file.write_bytes(wrong)
        await house.tenure.look()
        assert house.tenure.refused is None
        house.install()
        await house.tenure.look()
        assert house.tenure.refused is None
    house.file.unlink()
    await house.tenure.look()
    await house.tenure.look()
    assert house.cause is Cause.MISSING


async def test_an_older_licence_put_over_a_newer_one_stops_everything(house: House) -> None:
    old = house.licence(version=1, lasts=5000)
    house.install(version=2)
    await house.tenure.look()
    house.file.write_bytes(old)
    await house.tenure.look()
    await house.tenure.look()
    assert house.cause is Cause.ROLLED_BACK
    house.tenure = house.process()
    await house.tenure.look()
    assert house.cause is Cause.ROLLED_BACK


async def test_a_licence_for_later_or_for_the_next_policy_leaves_the_one_in_force(house: House) -> None:
    house.install()
    await house.tenure.look()
    next_policy = house._policy(share="50%")
    for terms in ({"begins": 500}, {"policy": next_policy}):
        house.install(version=2, **terms)
        for _ in range(3):
            await house.tenure.look()
        assert house.tenure.refused is None
        assert house.remembered().version == 1
    await house.tenure.take(next_policy)
    assert house.tenure.refused is None
    assert house.remembered().version == 2
    await house.tenure.take(house.policy)
    assert house.cause is Cause.OTHER_POLICY


async def test_a_clock_set_ahead_ends_it_and_set_back_again_does_not_revive_it(house: House) -> None:
    house.install()
    await house.tenure.look()
    house.clock.step_wall(1_000_000)
    assert house.cause is Cause.EXPIRED
    await house.tenure.look()
    house.clock.step_wall(-1_000_000)
    await house.tenure.look()
    assert house.cause is Cause.CLOCK_SET_BACK
    house.tenure = house.process()  # nor does a restart
    await house.tenure.look()
    assert house.cause is Cause.CLOCK_SET_BACK
    house.install(version=2, lasts=2000)  # but a new licence does
    await house.tenure.look()
    assert house.tenure.refused is None


async def test_a_clock_set_back_within_its_time_gives_a_process_no_more_of_it(house: House) -> None:
    house.install()
    await house.tenure.look()
    house.clock.advance(600)
    await house.tenure.look()
    house.clock.step_wall(-500)
    await house.tenure.look()
    assert house.tenure.refused is None
    house.clock.advance(400)
    assert house.cause is Cause.CLOCK_SET_BACK


async def test_a_clock_set_back_between_two_processes_gives_at_most_the_time_between_two_notes(house: House) -> None:
    house.install()
    await house.tenure.look()
    for _ in range(600):
        house.clock.advance(LOOK_S)
        await house.tenure.look()
    assert 600 - REMEMBER_S <= house.remembered().latest_s - NOW <= 600
    house.clock.step_wall(-600)
    house.tenure = house.process()
    await house.tenure.look()
    assert house.tenure.refused is None
    house.clock.advance(400 + REMEMBER_S)
    assert house.cause is Cause.CLOCK_SET_BACK


async def test_a_memory_that_cannot_be_trusted_permits_nothing(house: House) -> None:
    house.install()
    (house.directory / "audit").mkdir()
    (house.directory / "audit" / "licence-seen.json").write_bytes(b"{")
    await house.tenure.look()
    assert house.cause is Cause.NOT_REMEMBERED


async def test_a_licence_that_cannot_be_remembered_is_not_used(house: House) -> None:
    house.install()
    (house.directory / "audit").write_bytes(b"")  # where the directory should be
    await house.tenure.look()
    assert house.cause is Cause.NOT_REMEMBERED


async def test_a_policy_that_asks_for_none_permits_everything(house: House) -> None:
    text = f"""\
listen: 127.0.0.1:0
admin: 127.0.0.1:0
models:
  m: {{upstream: "http://127.0.0.1:1", weights: {{parameters: 1e9}}, theft_compression: 4, budgets: [{{window: 1d, bytes: 1MB}}]}}
tenants:
  t: {{keys: ["sha256:{"0" * 64}"], models: [m]}}
audit: {{directory: "{house.directory}/audit"}}
"""
    policy = parse(text, name="weir.yaml")
    assert isinstance(policy, Policy)
    house.policy = policy
    tenure = house.process()
    await tenure.look()
    await tenure.take(policy)
    assert tenure.refused is None
    assert house.leaves == []
    assert counted(house.metrics.registry, "weir_licence_ok") == 1
    (family,) = [f for f in house.metrics.registry.collect() if f.name == "weir_licence_expires_timestamp_seconds"]
    assert family.samples[0].value == math.inf
    assert not (house.directory / "audit").exists()


def _remember_many(directory: str, first: int) -> None:
    for version in range(first, 200, 4):
        Unforgetting(Path(directory)).remember(Memory(version=version, terms=str(version), latest_s=version))


def test_many_processes_remember_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_remember_many, args=(str(tmp_path), first)) for first in range(1, 5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert Unforgetting(tmp_path).recall() == Memory(version=199, terms="199", latest_s=199)
    assert [path.name for path in tmp_path.iterdir()] == ["licence-seen.json"]


LOWERED, RAISED = "30%", "50%"


def amended(house: House, *, to: Policy, licensed: str | None = None, key: Ed25519PrivateKey = KEY) -> bytes:
    return written(amend(Change(licensed=licensed or house.text(), policy=to.digest), key))


async def test_one_signature_carries_a_licence_over_to_a_stricter_policy(house: House) -> None:
    house.install()
    await house.tenure.look()
    lower = house._policy(LOWERED)
    (house.directory / "licence.json.amendment").write_bytes(amended(house, to=lower))
    await house.tenure.take(lower)
    assert house.tenure.refused is None
    await house.tenure.look()
    assert [type(leaf) for leaf in house.leaves] == [LicenceInstalled, LicenceAmended]
    told = house.leaves[1]
    assert isinstance(told, LicenceAmended)
    assert (told.policy, told.signers) == (lower.digest, ("ann",))
    house.policy = lower  # after a restart too
    house.tenure = house.process()
    await house.tenure.look()
    assert house.tenure.refused is None


async def test_no_amendment_carries_a_licence_over_to_anything_else(house: House) -> None:
    house.install()
    lower, higher = house._policy(LOWERED), house._policy(RAISED)
    stranger = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
    cases = [
        (higher, amended(house, to=higher)),  # whatever its signer thinks
        (higher, amended(house, to=higher, licensed=house.text(RAISED))),  # from a policy that nobody licensed
        (lower, amended(house, to=higher)),
        (lower, amended(house, to=lower, key=stranger)),
        (lower, amended(house, to=lower, licensed="listen: x")),
        (lower, amended(house, to=lower)[:-20]),
        (lower, house.licence(policy=lower)),  # an envelope of the other kind
        (lower, bytes(AMENDMENT_BYTES_MAX + 1)),
    ]
    for policy, data in cases:
        (house.directory / "licence.json.amendment").write_bytes(data)
        house.tenure = house.process()
        await house.tenure.take(policy)
        assert house.cause is Cause.OTHER_POLICY
