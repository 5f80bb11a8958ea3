"""RFC 6962 Merkle trees: hashes, a tree's growing edge, inclusion and consistency proofs. Pure: where hashes lie is asked for.

A tree of n leaves is never held. Its frontier is the roots of the complete subtrees that n is the sum of, largest first:
at most 64 hashes, enough to append and to know the root. Proofs are made of subtrees' roots that a reader answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

HASH_BYTES = 32
PROOF_HASHES_MAX = 64  # a tree has at most 2**63 leaves; a consistency proof has one hash a level and one more
EMPTY_ROOT = sha256().digest()

# Answers the root of the complete subtree over leaves [index << level, (index + 1) << level).
ReadSubtree = Callable[[int, int], bytes]


def leaf_hash(entry: bytes) -> bytes:
    """RFC 6962 §2.1. The prefixes keep a leaf from passing as a node."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962 §2.1."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """The growing edge of a tree: `size`, `root()` and `append`, in O(log size) memory."""

    def __init__(self) -> None:
        self.size = 0
        self._roots: list[bytes] = []  # of the complete subtrees, largest first: one for each bit set in size

    @classmethod
    def of(cls, read: ReadSubtree, size: int) -> Frontier:
        """The edge of a tree of `size` leaves whose hashes are kept elsewhere."""
        frontier = cls()
        frontier.size = size
        for level in reversed(range(size.bit_length())):
            if size >> level & 1:
                frontier._roots.append(read(level, (size >> level) - 1))
        return frontier

    def append(self, leaf: bytes) -> Sequence[bytes]:
        """Add a leaf's hash. Answers the roots of the complete subtrees that end with it, by level: the leaf itself first."""
        completed = [leaf]
        size = self.size
        while size & 1:
            completed.append(node_hash(self._roots.pop(), completed[-1]))
            size >>= 1
        self._roots.append(completed[-1])
        self.size += 1
        return completed

    def root(self) -> bytes:
        """The tree's root hash."""
        if not self._roots:
            return EMPTY_ROOT
        root = self._roots[-1]
        for left in reversed(self._roots[:-1]):
            root = node_hash(left, root)
        return root


def inclusion_proof(read: ReadSubtree, index: int, size: int) -> Sequence[bytes]:
    """RFC 6962 §2.1.1: the hashes that lead from leaf `index` to the root of the tree of `size` leaves."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    proof = []
    start, end = 0, size
    while end - start > 1:
        split = start + _left_leaves(end - start)
        if index < split:
            proof.append(_root_of(read, split, end))
            end = split
        else:
            proof.append(_root_of(read, start, split))
            start = split
    return proof[::-1]


def consistency_proof(read: ReadSubtree, old_size: int, size: int) -> Sequence[bytes]:
    """RFC 6962 §2.1.2: the hashes that show that the tree of `old_size` leaves is the beginning of the one of `size`."""
    if not 0 <= old_size <= size:
        raise ValueError(f"a tree of {old_size} leaves is no beginning of one of {size}")
    if old_size in {0, size}:
        return []
    proof = []
    start, end = 0, size
    while end != old_size:
        split = start + _left_leaves(end - start)
        if old_size <= split:
            proof.append(_root_of(read, split, end))
            end = split
        else:
            proof.append(_root_of(read, start, split))
            start = split
    if start > 0:  # else this is the old root, which whoever checks has
        proof.append(_root_of(read, start, end))
    return proof[::-1]


def check_inclusion(*, leaf: bytes, index: int, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the proof shows that the leaf with this hash stands at `index` in the tree of `size` leaves (RFC 9162 §2.1.3.2)."""
    if not 0 <= index < size or not _well_formed(proof):
        return False
    position, last = index, size - 1  # of the subtree at hand and of the last one, both at its level
    computed = leaf
    for sibling in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            computed = node_hash(sibling, computed)
            while not position & 1 and position:  # a last subtree without a sibling stands for its parents too
                position, last = position >> 1, last >> 1
        else:
            computed = node_hash(computed, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and computed == root


def check_consistency(*, old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the proof shows that the old tree is the beginning of the new one (RFC 9162 §2.1.4.2)."""
    if not 0 <= old_size <= size or not _well_formed(proof):
        return False
    if old_size == 0:
        return not proof and old_root == EMPTY_ROOT and (size > 0 or root == EMPTY_ROOT)
    if old_size == size:
        return not proof and old_root == root
    hashes = list(proof)
    position, last = old_size - 1, size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    if position == 0:  # the old tree is complete: its root is a node of the new tree, and not sent
        hashes.insert(0, old_root)
    if not hashes:
        return False
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and old == old_root and new == root


def _root_of(read: ReadSubtree, start: int, end: int) -> bytes:
    """MTH(D[start:end]) of a subtree that a split by `_left_leaves` made: only the last one of a tree is not complete."""
    leaves = end - start
    if leaves & (leaves - 1) == 0:
        level = leaves.bit_length() - 1
        return read(level, start >> level)
    split = start + _left_leaves(leaves)
    return node_hash(_root_of(read, start, split), _root_of(read, split, end))


def _left_leaves(leaves: int) -> int:
    """RFC 6962's k: the largest power of two smaller than `leaves`."""
    return 1 << ((leaves - 1).bit_length() - 1)


def _well_formed(proof: Sequence[bytes]) -> bool:
    return len(proof) <= PROOF_HASHES_MAX and all(len(sibling) == HASH_BYTES for sibling in proof)
