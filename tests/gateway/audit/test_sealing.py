"""Sealed batches open for their auditors, whole, in their place, and for nobody else."""

from __future__ import annotations

import base64
import gc
import os
import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audit import sealing
from gateway.audit.sealing import (
    CHAIN_S,
    CHAIN_STEPS_MAX,
    CONTENTS_BYTES_MAX,
    CONTENTS_MAX,
    SALT_BYTES,
    SECRET_BYTES,
    AuditorSecret,
    Content,
    Sealer,
    Unsealable,
    auditor_secret,
    commitment,
    public_bytes,
    unseal,
)
from policy.rules import PublicKey

ORIGIN = "example.org/egress/gate-1"
KINDS = ["x25519", "xwing"]
HEADER_BYTES = 28 + 2 * (11 + 80)  # with two auditors' x25519 keys
SECRET_WORDS = b"what the client said and nobody else may read"


def auditor(name: str, kind: str = "x25519") -> tuple[PublicKey, AuditorSecret]:
    raw = os.urandom(SECRET_BYTES[kind])
    encoded = base64.b64encode(public_bytes(kind, raw)).decode()
    return PublicKey(algorithm=kind, name=name, encoded=encoded), auditor_secret(kind, raw)


ANNA, ANNAS = auditor("anna")
BORIS, BORISS = auditor("boris", "xwing")
CLEO, CLEOS = auditor("cleo")


def sealer(*auditors: PublicKey, origin: str = ORIGIN) -> Sealer:
    return Sealer(auditors or (ANNA, BORIS), origin=origin, random=os.urandom)


def content(data: bytes = SECRET_WORDS) -> Content:
    return Content(salt=os.urandom(SALT_BYTES), data=data)


def opened(blob: bytes, secret: AuditorSecret = ANNAS, *, origin: str = ORIGIN, batch: str = "7") -> list[Content]:
    return unseal(blob, secret, origin=origin, batch=batch)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_every_auditor_reads_every_content_with_its_salt(texts: list[bytes]) -> None:
    contents = [content(text) for text in texts]
    blob = sealer().seal(contents, batch="7", now_s=0.0)
    assert opened(blob, ANNAS) == opened(blob, BORISS) == contents


def test_batches_of_one_chain_and_of_the_next_all_open_by_themselves() -> None:
    seals = sealer()
    times = [0.0, 0.1, 0.2, CHAIN_S, CHAIN_S + 0.1, 9.0]
    blobs = [seals.seal([content(str(at).encode())], batch=str(at), now_s=at) for at in times]
    for at, blob in reversed(list(zip(times, blobs, strict=True))):
        assert [c.data for c in opened(blob, batch=str(at))] == [str(at).encode()]
    chains = [blob[12:28] for blob in blobs]
    assert [chains.index(chain) for chain in chains] == [0, 0, 0, 3, 3, 5]


def test_a_chain_has_an_end_that_its_readers_accept() -> None:
    seals = sealer(ANNA, CLEO)
    blobs = [seals.seal([], batch="7", now_s=0.0) for _ in range(CHAIN_STEPS_MAX + 1)]
    assert opened(blobs[CHAIN_STEPS_MAX - 1]) == opened(blobs[CHAIN_STEPS_MAX]) == []
    assert blobs[CHAIN_STEPS_MAX - 1][12:28] != blobs[CHAIN_STEPS_MAX][12:28]


def test_another_key_does_not_open_it() -> None:
    blob = sealer().seal([content()], batch="7", now_s=0.0)
    with pytest.raises(Unsealable, match="none of theirs"):
        opened(blob, CLEOS)


@pytest.mark.parametrize(("origin", "batch"), [(ORIGIN + "x", "7"), (ORIGIN, "8"), (ORIGIN[:-1], ORIGIN[-1] + "7")])
def test_a_batch_opens_only_in_its_log_and_place(origin: str, batch: str) -> None:
    blob = sealer().seal([content()], batch="7", now_s=0.0)
    with pytest.raises(Unsealable, match="of another log"):
        opened(blob, origin=origin, batch=batch)


@pytest.mark.parametrize("auditors", [(ANNA, CLEO), (ANNA, BORIS)])
@pytest.mark.parametrize("secret", [ANNAS])
def test_every_flipped_bit_is_noticed(auditors: tuple[PublicKey, ...], secret: AuditorSecret) -> None:
    """Also in the other auditors' parts, which this one cannot read: nobody may be shut out in silence."""
    seals = sealer(*auditors)
    seals.seal([], batch="6", now_s=0.0)
    blob = seals.seal([content(b"short")], batch="7", now_s=0.0)
    for bit in range(0, 8 * len(blob), 1 if len(blob) < 1000 else 7):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Unsealable):
            opened(bytes(changed), secret)


def test_every_cut_and_every_addition_is_noticed() -> None:
    blob = sealer(ANNA, CLEO).seal([content()], batch="7", now_s=0.0)
    for size in range(len(blob)):
        with pytest.raises(Unsealable):
            opened(blob[:size])
    with pytest.raises(Unsealable):
        opened(blob + b"\0")


def test_the_header_of_another_batch_does_not_fit() -> None:
    seals = sealer(ANNA, CLEO)
    first, second = (seals.seal([content()], batch="7", now_s=0.0) for _ in range(2))
    other = sealer(ANNA, CLEO).seal([content()], batch="7", now_s=0.0)
    for donor in (second, other):
        with pytest.raises(Unsealable):
            opened(donor[:HEADER_BYTES] + first[HEADER_BYTES:])


def test_the_sealed_key_of_one_chain_cannot_stand_in_another() -> None:
    first, second = (sealer(ANNA, CLEO).seal([content()], batch="7", now_s=0.0) for _ in range(2))
    slot = slice(28, 28 + 11 + 80)
    with pytest.raises(Unsealable, match="sealed key"):
        opened(first[:28] + second[slot] + first[slot.stop :])


def test_auditors_cannot_be_taken_out_or_change_places() -> None:
    blob = sealer(ANNA, CLEO, BORIS).seal([content()], batch="7", now_s=0.0)
    one, two, rest = blob[28 : 28 + 91], blob[28 + 91 : 28 + 182], blob[28 + 182 :]
    with pytest.raises(Unsealable):
        opened(blob[:28] + two + one + rest)
    fewer = bytearray(blob[:28] + one + rest)
    fewer[9] = 2
    with pytest.raises(Unsealable):
        opened(bytes(fewer))


def test_a_header_beyond_the_limits_is_refused_before_any_work() -> None:
    blob = sealer(ANNA, CLEO).seal([content()], batch="7", now_s=0.0)
    cases = [
        (b"WEIRLOG1" + blob[8:], "no sealed batch"),
        (blob[:8] + b"\x02" + blob[9:], "format 2"),
        (blob[:9] + b"\x01" + blob[10:], "not one that a gateway writes"),
        (blob[:9] + b"\x09" + blob[10:], "not one that a gateway writes"),
        (blob[:10] + struct.pack(">H", CHAIN_STEPS_MAX) + blob[12:], "not one that a gateway writes"),
        (blob[:28] + b"\x09" + blob[29:], "not one that a gateway writes"),
        (bytes(sealing.SEALED_BYTES_MAX + 1), "over"),
    ]
    for changed, reason in cases:
        with pytest.raises(Unsealable, match=reason):
            opened(changed)


@pytest.mark.parametrize(
    "inside",
    [
        b"not zstd",
        sealing.ZstdCompressor().compress(bytes(CONTENTS_BYTES_MAX + 1), mode=sealing.ZstdCompressor.FLUSH_FRAME),
        sealing.ZstdCompressor().compress(b"xyz", mode=sealing.ZstdCompressor.FLUSH_FRAME),
        sealing.ZstdCompressor().compress(struct.pack(">I32s", 5, b""), mode=sealing.ZstdCompressor.FLUSH_FRAME),
        sealing.ZstdCompressor().compress(b"", mode=sealing.ZstdCompressor.FLUSH_FRAME) + b"more",
        sealing.ZstdCompressor().compress(b"x" * 40, mode=sealing.ZstdCompressor.FLUSH_FRAME)[:-3],
        sealing.ZstdCompressor().compress(bytes(36 * (CONTENTS_MAX + 1)), mode=sealing.ZstdCompressor.FLUSH_FRAME),
    ],
    ids=["not zstd", "a bomb", "half a head", "longer than it is", "two frames", "half a frame", "too many"],
)
def test_what_a_dishonest_gateway_seals_harms_no_auditor(inside: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    class Packed:
        def compress(self, data: bytes, mode: int) -> bytes:
            return inside

    seals = sealer(ANNA, CLEO)
    monkeypatch.setattr(seals, "_compressor", Packed())
    with pytest.raises(Unsealable, match="what was sealed is not"):
        opened(seals.seal([], batch="7", now_s=0.0))


def test_a_batch_that_nobody_would_open_is_not_sealed() -> None:
    for contents in ([content(bytes(CONTENTS_BYTES_MAX))], [content(b"")] * (CONTENTS_MAX + 1)):
        with pytest.raises(ValueError, match="larger than"):
            sealer().seal(contents, batch="7", now_s=0.0)


def test_one_auditor_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="2 to 8"):
        Sealer([ANNA], origin=ORIGIN, random=os.urandom)


def test_a_commitment_hides_what_can_be_guessed_and_binds_what_was_said() -> None:
    yes, again = content(b"yes"), content(b"yes")
    assert commitment(yes) != commitment(again)
    assert commitment(yes) == commitment(Content(salt=yes.salt, data=b"yes"))
    assert commitment(yes) != commitment(Content(salt=yes.salt, data=b"no"))
    with pytest.raises(ValueError, match="32 bytes"):
        Content(salt=b"short", data=b"")


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_knows_its_public_key(kind: str) -> None:
    public, secret = auditor("dora", kind)
    assert sealing.key_id(public) == secret.id


def everything_in(seals: Sealer) -> list[bytes]:
    """Every string of 32 bytes within every value that a sealer still holds, as one would search an image of its memory."""
    held = [value for value in vars(seals).values() if isinstance(value, bytes)]
    return [value[at : at + 32] for value in held for at in range(max(len(value) - 31, 0))]


def test_with_the_gateways_own_keys_disk_and_memory_no_past_content_can_be_opened() -> None:
    """The auditors' public keys, all sealed batches, and what the process holds now: its own next batch at the most."""
    # Arrange: a gateway that has sealed something, in this chain and before it. This is all it has kept.
    seals = sealer(ANNA, CLEO)
    past = [seals.seal([content()], batch="7", now_s=at) for at in (0.0, 0.1, 5.0, 5.1)]
    gc.collect()

    # Act: try everything that is there as each kind of secret that opens a batch.
    public = [key.raw for key in (ANNA, CLEO)]
    found = {*everything_in(seals), *public, *(blob[at : at + 32] for blob in past for at in range(len(blob) - 31))}

    # Assert
    assert SECRET_WORDS not in pickle.dumps({k: v for k, v in vars(seals).items() if isinstance(v, (bytes, str, int))})
    for blob in past:
        header, _, _, _ = sealing._parsed(blob)
        for key in found:
            for candidate in (key, sealing._message_key(key)):
                with pytest.raises(sealing.InvalidTag):
                    sealing.AESGCM(candidate).decrypt(
                        bytes(12), blob[len(header) :], sealing._bound(header, ORIGIN, "7")
                    )
    for key in [*public, *everything_in(seals)][:200]:
        for blob in past:
            with pytest.raises(Unsealable):
                opened(blob, AuditorSecret(algorithm="x25519", id=ANNAS.id, private=sealing._private("x25519", key)))

    # And the search would have found a key: what is held now opens what comes next, until the chain ends.
    held = everything_in(seals)
    after = seals.seal([content()], batch="7", now_s=5.2)
    header, _, _, _ = sealing._parsed(after)
    bound = sealing._bound(header, ORIGIN, "7")
    keys = [sealing._message_key(key) for key in held]
    opens = [key for key in keys if _opens(key, after[len(header) :], bound)]
    assert len(opens) == 1


def _opens(key: bytes, ciphertext: bytes, bound: bytes) -> bool:
    try:
        sealing.AESGCM(key).decrypt(bytes(12), ciphertext, bound)
    except sealing.InvalidTag:
        return False
    return True
