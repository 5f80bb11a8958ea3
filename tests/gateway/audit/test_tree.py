"""The tree equals its definition in RFC 6962 §2.1, and a proof shows what it says and nothing else."""

from collections.abc import Sequence
from functools import cache
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audit.tree import (
    EMPTY_ROOT,
    Frontier,
    check_consistency,
    check_inclusion,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
)

SIZE_MAX = 200
ENTRIES = tuple(str(number).encode() for number in range(SIZE_MAX))


@cache
def mth(start: int, end: int) -> bytes:
    """RFC 6962 §2.1, as it is written."""
    if start == end:
        return sha256(b"").digest()
    if end - start == 1:
        return sha256(b"\x00" + ENTRIES[start]).digest()
    k = 1
    while 2 * k < end - start:
        k *= 2
    return sha256(b"\x01" + mth(start, start + k) + mth(start + k, end)).digest()


def path(m: int, start: int, end: int) -> list[bytes]:
    """PATH of RFC 6962 §2.1.1, as it is written."""
    n = end - start
    if n == 1:
        return []
    k = 1
    while 2 * k < n:
        k *= 2
    if m < k:
        return [*path(m, start, start + k), mth(start + k, end)]
    return [*path(m - k, start + k, end), mth(start, start + k)]


def subproof(m: int, start: int, end: int, whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962 §2.1.2, as it is written."""
    n = end - start
    if m == n:
        return [] if whole else [mth(start, end)]
    k = 1
    while 2 * k < n:
        k *= 2
    if m <= k:
        return [*subproof(m, start, start + k, whole), mth(start + k, end)]
    return [*subproof(m - k, start + k, end, False), mth(start, start + k)]


def read(level: int, index: int) -> bytes:
    return mth(index << level, (index + 1) << level)


def tampered(proof: Sequence[bytes]):
    """Every proof that differs in one bit, and those with a hash too few or too many."""
    for place, sibling in enumerate(proof):
        for bit in range(256):
            changed = bytearray(sibling)
            changed[bit // 8] ^= 1 << bit % 8
            yield [*proof[:place], bytes(changed), *proof[place + 1 :]]
        yield [*proof[:place], *proof[place + 1 :]]
        yield [*proof[:place], sibling[:-1], *proof[place + 1 :]]
    yield [*proof, EMPTY_ROOT]
    yield [EMPTY_ROOT, *proof]


def test_the_root_of_every_size_is_the_one_of_the_definition():
    frontier = Frontier()
    for size, entry in enumerate(ENTRIES):
        assert (frontier.size, frontier.root()) == (size, mth(0, size))
        assert Frontier.of(read, size).root() == frontier.root()
        completed = frontier.append(leaf_hash(entry))
        assert list(completed) == [read(level, size >> level) for level in range(len(completed))]
    assert frontier.root() == mth(0, SIZE_MAX)


def test_known_roots():
    """From the RFC's reference implementation (certificate-transparency, merkle_tree_test.cc)."""
    frontier = Frontier()
    assert frontier.root().hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for entry in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"):
        frontier.append(leaf_hash(bytes.fromhex(entry)))
    assert frontier.root().hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def test_every_inclusion_proof_is_the_one_of_the_definition_and_is_accepted():
    for size in range(1, SIZE_MAX + 1):
        for index in range(size):
            proof = inclusion_proof(read, index, size)
            assert list(proof) == path(index, 0, size)
            assert check_inclusion(
                leaf=leaf_hash(ENTRIES[index]), index=index, size=size, root=mth(0, size), proof=proof
            )


def test_every_consistency_proof_is_the_one_of_the_definition_and_is_accepted():
    for size in range(SIZE_MAX + 1):
        for old_size in range(size + 1):
            proof = consistency_proof(read, old_size, size)
            assert list(proof) == (subproof(old_size, 0, size, True) if old_size else [])
            assert check_consistency(
                old_size=old_size, old_root=mth(0, old_size), size=size, root=mth(0, size), proof=proof
            )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, SIZE_MAX).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1))))
def test_an_inclusion_proof_shows_nothing_else(case):
    size, index = case
    proof = inclusion_proof(read, index, size)
    leaf, root = leaf_hash(ENTRIES[index]), mth(0, size)
    for wrong in tampered(proof):
        assert not check_inclusion(leaf=leaf, index=index, size=size, root=root, proof=wrong)
    for other in range(-1, size + 1):
        if other != index:
            assert not check_inclusion(leaf=leaf, index=other, size=size, root=root, proof=proof)
    assert not check_inclusion(leaf=leaf_hash(b"other"), index=index, size=size, root=root, proof=proof)
    assert not check_inclusion(leaf=leaf, index=index, size=size, root=EMPTY_ROOT, proof=proof)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, SIZE_MAX).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size))))
def test_a_consistency_proof_shows_nothing_else(case):
    size, old_size = case
    proof = consistency_proof(read, old_size, size)
    trees = {"old_size": old_size, "old_root": mth(0, old_size), "size": size, "root": mth(0, size)}
    assert check_consistency(**trees, proof=proof)
    for wrong in tampered(proof):
        assert not check_consistency(**trees, proof=wrong)
    assert not check_consistency(**{**trees, "old_root": bytes(32)}, proof=proof)
    if old_size:
        assert not check_consistency(**{**trees, "root": bytes(32)}, proof=proof)
    for other in range(-1, old_size):
        assert not check_consistency(**{**trees, "old_size": other}, proof=proof)
    assert not check_consistency(**{**trees, "old_size": size + 1}, proof=proof)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2**14), st.integers(0, 2**60), st.data())
def test_large_trees_prove_themselves(size, salt, data):
    levels: list[dict[int, bytes]] = []
    frontier = Frontier()
    mark = data.draw(st.integers(0, size))
    old_root = frontier.root()
    for number in range(size):
        for level, root in enumerate(frontier.append(leaf_hash(b"%d %d" % (salt, number)))):
            if level == len(levels):
                levels.append({})
            levels[level][number >> level] = root
        if number + 1 == mark:
            old_root = frontier.root()

    def kept(level: int, index: int) -> bytes:
        return levels[level][index]

    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(kept, index, size)
    assert check_inclusion(
        leaf=leaf_hash(b"%d %d" % (salt, index)), index=index, size=size, root=frontier.root(), proof=proof
    )
    proof = consistency_proof(kept, mark, size)
    assert check_consistency(old_size=mark, old_root=old_root, size=size, root=frontier.root(), proof=proof)


def test_what_no_tree_holds_cannot_be_asked_for():
    with pytest.raises(ValueError, match="not in a tree"):
        inclusion_proof(read, 5, 5)
    with pytest.raises(ValueError, match="not in a tree"):
        inclusion_proof(read, -1, 5)
    with pytest.raises(ValueError, match="no beginning"):
        consistency_proof(read, 6, 5)
