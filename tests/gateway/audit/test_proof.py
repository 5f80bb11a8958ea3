"""Proofs of inclusion: what one was made of it proves, and nothing else."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audit.note import Checkpoint, Signer
from gateway.audit.proof import BadProof, Proof
from gateway.audit.tree import Frontier, leaf_hash, node_hash

SIGNER = Signer(name="example.com/log", seed=bytes(32))
OTHER = Signer(name="example.com/log", seed=bytes(31) + b"1")
SIZE = 21


def entry(number: int) -> bytes:
    return b'{"record":%d}' % number


def read(level: int, index: int) -> bytes:
    if level == 0:
        return leaf_hash(entry(index))
    return node_hash(read(level - 1, 2 * index), read(level - 1, 2 * index + 1))


def note(size: int = SIZE, signer: Signer = SIGNER):
    return Checkpoint(origin=signer.name, size=size, root=Frontier.of(read, size).root()).signed([signer])


def proof(index: int) -> Proof:
    return Proof.of(read, index, note=note(), entry=entry(index))


@pytest.mark.parametrize("index", range(SIZE))
def test_a_proof_is_checked_by_whoever_has_the_key_and_the_record(index):
    parsed = Proof.parse(proof(index).encode())
    assert parsed == proof(index)
    assert parsed.check(verifier=SIGNER.verifier, entry=entry(index)).size == SIZE
    assert parsed.extra == entry(index)


def test_the_format_is_the_one_of_the_specification():
    lines = proof(5).encode().decode().split("\n")
    assert lines[:3] == ["c2sp.org/tlog-proof@v1", f"extra {base64.b64encode(entry(5)).decode()}", "index 5"]
    assert lines[3] == base64.b64encode(leaf_hash(entry(4))).decode(), "the sibling first"
    end = lines.index("")
    assert end - 3 == 5, "five hashes lead to the root of 21 leaves"
    assert "\n".join(lines[end + 1 :]).encode() == note().encode(), "the checkpoint as it is"


def test_another_record_key_or_place_is_not_proven():
    for other in (entry(6), b"", entry(5) + b"\n"):
        with pytest.raises(BadProof, match="does not show"):
            proof(5).check(verifier=SIGNER.verifier, entry=other)
    with pytest.raises(BadProof, match="not signed by"):
        proof(5).check(verifier=OTHER.verifier, entry=entry(5))
    with pytest.raises(BadProof, match="not signed yet"):
        proof(SIZE)


def test_files_that_do_not_lead_to_the_root_give_no_proof():
    with pytest.raises(BadProof, match="weir audit verify"):
        Proof.of(lambda level, index: bytes(32), 5, note=note(), entry=entry(5))


@given(st.data())
def test_no_changed_byte_is_let_through_but_in_what_proves_nothing(data):
    """The `extra` line is not covered: a record changed there is another record, and that is not proven."""
    whole = bytearray(proof(5).encode())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        parsed = Proof.parse(bytes(whole))
        parsed.check(verifier=SIGNER.verifier, entry=parsed.extra or b"")
    except BadProof:
        return
    raise AssertionError(f"byte {at} was changed, and the proof was believed")


@given(st.binary(max_size=300))
def test_nothing_else_is_taken_for_a_proof(data):
    with pytest.raises(BadProof):
        Proof.parse(data)
    with pytest.raises(BadProof):
        Proof.parse(b"c2sp.org/tlog-proof@v1\nindex 0\n\n" + data)
