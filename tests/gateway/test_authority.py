"""A licence holds for one policy, some gateways and some hours, if enough different people have signed it; or it says why not."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from gateway.authority import (
    ENVELOPE_BYTES_MAX,
    Cause,
    Denied,
    Licence,
    Memory,
    Terms,
    key_id,
    objection,
    read,
    sign,
    written,
)
from policy.rules import LicenceRule, PublicKey

POLICY = "ab" * 32
NOON = 1_800_000_000
DAY_S = 86_400
ANNA, BORIS, CLEO, MALLORY = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3, 4))


def public(name: str, private: Ed25519PrivateKey) -> PublicKey:
    encoded = base64.b64encode(private.public_key().public_bytes_raw()).decode()
    return PublicKey(algorithm="ed25519", name=name, encoded=encoded)


KEYS = (public("anna", ANNA), public("boris", BORIS), public("cleo", CLEO))
RULE = LicenceRule(file="licence.json", keys=KEYS, threshold=2, gateway="gate-1")


def terms(**changes: Any) -> Terms:
    usual = {
        "version": 5,
        "not_before": NOON,
        "expires": NOON + DAY_S,
        "gateways": ("gate-1", "gate-2"),
        "policy": POLICY,
    }
    return Terms(**(usual | changes))


def signed(*keys: Ed25519PrivateKey, **changes: Any) -> Licence:
    licence = Licence(terms=terms(**changes))
    for key in keys or (ANNA, CLEO):
        licence = sign(licence, key) or licence
    return licence


def said(
    licence: Licence,
    *,
    rule: LicenceRule = RULE,
    wall_s: float = NOON + 1,
    latest_s: float = 0,
    memory: Memory | None = None,
) -> Denied | None:
    return objection(licence, rule=rule, policy=POLICY, memory=memory or Memory(), wall_s=wall_s, latest_s=latest_s)


def denied(licence: Licence, **situation: Any) -> tuple[Cause, str]:
    found = said(licence, **situation)
    assert found is not None
    return found.cause, found.detail


def test_two_of_three_are_enough_whoever_they_are() -> None:
    for keys in ((ANNA, BORIS), (CLEO, ANNA), (BORIS, CLEO), (ANNA, BORIS, CLEO), (MALLORY, ANNA, BORIS)):
        assert said(signed(*keys)) is None


def test_the_last_second_is_the_one_before_the_end() -> None:
    assert said(signed(), wall_s=NOON) is None
    assert said(signed(), wall_s=NOON + DAY_S - 0.001) is None
    assert denied(signed(), wall_s=NOON + DAY_S) == (Cause.EXPIRED, "it ended at 2027-01-16T08:00:00Z")


def test_one_signature_is_not_two() -> None:
    assert denied(signed(ANNA)) == (Cause.UNDER_SIGNED, "1 of the policy's keys have signed (anna), and 2 must have")
    assert denied(Licence(terms=terms()))[1] == "0 of the policy's keys have signed, and 2 must have"


def test_two_signatures_of_one_key_count_once() -> None:
    """Whatever key id they claim, and however they are made: Ed25519 signatures can be made anew."""
    ((name, signature),) = signed(ANNA).signatures
    for claimed in (name, key_id(KEYS[1]), "x"):
        twice = Licence(terms=terms(), signatures=((name, signature), (claimed, signature)))
        assert denied(twice)[0] is Cause.UNDER_SIGNED
    assert sign(signed(ANNA), ANNA) is None


def test_a_stranger_counts_for_nothing() -> None:
    assert denied(signed(ANNA, MALLORY))[0] is Cause.UNDER_SIGNED
    claimed = tuple((key_id(KEYS[1]), signature) for _, signature in signed(MALLORY).signatures)
    assert denied(Licence(terms=terms(), signatures=(*signed(ANNA).signatures, *claimed)))[0] is Cause.UNDER_SIGNED


def test_a_signature_is_for_every_word_of_the_terms() -> None:
    for change in ({"version": 6}, {"not_before": NOON - 1}, {"expires": NOON + DAY_S + 1}, {"gateways": ("gate-1",)}):
        moved = Licence(terms=terms(**change), signatures=signed().signatures)
        assert denied(moved)[0] is Cause.UNDER_SIGNED


def test_another_gateway_needs_a_licence_of_its_own() -> None:
    assert denied(signed(gateways=("gate-3", "gate-4"))) == (
        Cause.OTHER_GATEWAY,
        "it is for gate-3, gate-4, and this is gate-1",
    )


def test_another_policy_needs_a_licence_of_its_own() -> None:
    cause, detail = denied(signed(policy="cd" * 32))
    assert (cause, detail) == (Cause.OTHER_POLICY, f"it is for policy {'cd' * 32}, and this is {POLICY}")


def test_an_older_version_does_not_come_back() -> None:
    memory = Memory().with_licence(signed(version=6))
    assert denied(signed(version=5), memory=memory) == (
        Cause.ROLLED_BACK,
        "it is version 5, and version 6 was in force here already",
    )
    assert said(signed(version=6), memory=memory) is None
    assert said(signed(BORIS, CLEO, version=6), memory=memory) is None  # other signatures, the same terms
    assert said(signed(version=7), memory=memory) is None


def test_one_version_has_one_content() -> None:
    memory = Memory().with_licence(signed())
    cause, detail = denied(signed(expires=NOON + 2 * DAY_S), memory=memory)
    assert (cause, detail) == (
        Cause.ROLLED_BACK,
        "another licence was version 5 already; a new one takes a new version",
    )


def test_before_its_time_it_does_not_hold() -> None:
    assert denied(signed(), wall_s=NOON - 1) == (Cause.NOT_YET_VALID, "it begins at 2027-01-15T08:00:00Z")


def test_a_clock_that_is_set_back_revives_nothing() -> None:
    over = Memory().at(NOON + DAY_S + 5, signed())
    assert denied(signed(), wall_s=NOON + 1, memory=over)[0] is Cause.CLOCK_SET_BACK
    assert denied(signed(), wall_s=NOON + 1, latest_s=NOON + DAY_S)[0] is Cause.CLOCK_SET_BACK
    assert "the clock has been there and says 2027-01-15T08:00:01Z now" in denied(signed(), memory=over)[1]


def test_a_clock_that_is_set_back_within_its_time_does_not_make_it_begin_later() -> None:
    assert said(signed(), wall_s=NOON - 10 * DAY_S, latest_s=NOON + 100) is None


def test_a_clock_that_ran_ahead_does_not_outlive_the_next_licence() -> None:
    """The cure for a clock that was wrong once is a new licence, not an editor."""
    memory = Memory().with_licence(signed()).at(NOON + 3650 * DAY_S, signed())
    assert memory.latest_s == NOON + DAY_S
    renewed = signed(version=6, not_before=NOON + 60, expires=NOON + 60 + DAY_S)
    assert said(renewed, wall_s=NOON + 60, memory=memory) is None


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 10**6)), max_size=6), st.randoms(use_true_random=False))
def test_what_many_processes_remember_is_the_same_in_any_order_and_only_grows(
    seen: list[tuple[int, int]], shuffle: Any
) -> None:
    memories = [Memory(version=version, terms=str(version), latest_s=latest_s) for version, latest_s in seen]
    one = Memory()
    for memory in memories:
        before, one = one, one.joined(memory)
        assert one.version >= before.version
        assert one.latest_s >= before.latest_s
    shuffle.shuffle(memories)
    other = Memory()
    for memory in memories:
        other = other.joined(memory)
    assert other == one


def test_a_file_reads_back_as_what_was_written() -> None:
    licence = signed(ANNA, BORIS, CLEO)
    assert read(written(licence)) == licence


def envelope(**changes: Any) -> bytes:
    return json.dumps(json.loads(written(signed())) | changes).encode()


def payload(**changes: Any) -> str:
    body = json.loads(base64.b64decode(json.loads(written(signed()))["payload"])) | changes
    return base64.b64encode(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).decode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff" * 10,
        b"[" * 50_000,
        b" " * (ENVELOPE_BYTES_MAX + 1),
        written(signed())[:-40],
        envelope(payloadType="text/plain"),
        envelope(extra=1),
        envelope(payload="!!!"),
        envelope(payload="é"),
        envelope(signatures=[{"keyid": "", "sig": "*"}]),
        envelope(signatures=[{"keyid": "", "sig": ""}] * 65),
        envelope(payload=payload(format="weir-licence-2")),
        envelope(payload=payload(extra=1)),
        envelope(payload=payload(version=0)),
        envelope(payload=payload(version="5")),
        envelope(payload=payload(version=5.0)),
        envelope(payload=payload(gateways=[])),
        envelope(payload=payload(gateways=["a b"])),
        envelope(payload=payload(gateways=["a\n"])),
        envelope(payload=payload(policy="AB" * 32)),
        envelope(payload=payload(expires=NOON)),
        envelope(payload=payload(expires=10**15)),
        envelope(payload=base64.b64encode(json.dumps({"version": 5}).encode()).decode()),
        envelope(payload=base64.b64encode(base64.b64decode(payload()).replace(b",", b", ")).decode()),
    ],
)
def test_what_is_not_exactly_a_licence_is_unreadable(data: bytes) -> None:
    found = read(data)
    assert isinstance(found, Denied)
    assert found.cause is Cause.UNREADABLE
    assert found.detail


@given(st.binary(max_size=200))
def test_reading_never_raises(data: bytes) -> None:
    read(data)


def test_another_implementation_of_dsse_accepts_what_we_sign_and_we_accept_what_it_signs() -> None:
    # Arrange
    def known(private: Ed25519PrivateKey) -> SSlibKey:
        public_key = Ed25519PublicKey.from_public_bytes(private.public_key().public_bytes_raw())
        own = PublicKey(algorithm="ed25519", name="-", encoded=base64.b64encode(public_key.public_bytes_raw()).decode())
        return SSlibKey.from_crypto(public_key, keyid=key_id(own))

    keys = [known(private) for private in (ANNA, BORIS, CLEO)]

    # Act, assert: ours, theirs.
    theirs = Envelope.from_dict(json.loads(written(signed(ANNA, CLEO))))
    assert len(theirs.verify(keys, 2)) == 2
    with pytest.raises(VerificationError):
        Envelope.from_dict(json.loads(written(signed(ANNA)))).verify(keys, 2)

    # Theirs, ours.
    unsigned = Envelope.from_dict(json.loads(written(Licence(terms=terms()))))
    for private, key in ((BORIS, keys[1]), (CLEO, keys[2])):
        unsigned.sign(CryptoSigner(private, key))
    licence = read(json.dumps(unsigned.to_dict()).encode())
    assert isinstance(licence, Licence)
    assert said(licence) is None
    assert [key.name for key in licence.signers(KEYS)] == ["boris", "cleo"]
