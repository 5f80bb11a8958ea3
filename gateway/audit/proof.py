"""Proofs that a record is in a log, as C2SP tlog-proof has them: for whoever has the log's key and nothing else. Pure.

The record itself travels in the `extra` line, which proves nothing: it is what the proof is held against.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Self

from gateway.audit.note import BadNote, Checkpoint, Note, Verifier
from gateway.audit.tree import HASH_BYTES, PROOF_HASHES_MAX, ReadSubtree, check_inclusion, inclusion_proof, leaf_hash

FORMAT = "c2sp.org/tlog-proof@v1"
PROOF_BYTES_MAX = 512 * 1024  # a note has 256 KiB, and a record of the format in base64 88
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})", re.ASCII)


class BadProof(Exception):
    """This proves nothing. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """That a record stands at `index` in the tree of a checkpoint."""

    index: int
    hashes: tuple[bytes, ...]  # from the leaf's sibling up
    note: Note
    extra: bytes | None = None

    @classmethod
    def of(cls, read: ReadSubtree, index: int, *, note: Note, entry: bytes) -> Self:
        """From a tree. Raises `BadProof` if its files do not lead to the root of the checkpoint."""
        checkpoint = _checkpoint(note)
        if index >= checkpoint.size:
            raise BadProof(
                f"record {index} is not signed yet: the checkpoint has {checkpoint.size}; ask again in a second"
            )
        hashes = tuple(inclusion_proof(read, index, checkpoint.size))
        proof = cls(index=index, hashes=hashes, note=note, extra=entry)
        if not proof._holds(checkpoint, entry):
            raise BadProof("the files do not lead to the signed root: `weir audit verify` says which")
        return proof

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read one, strictly."""
        if len(data) > PROOF_BYTES_MAX:
            raise BadProof(f"a proof has at most {PROOF_BYTES_MAX} bytes")
        try:
            text, blank, note = data.decode().partition("\n\n")
        except UnicodeDecodeError as fault:
            raise BadProof("a proof is UTF-8") from fault
        form, *lines = text.split("\n")
        if form != FORMAT or not blank:
            raise BadProof(f"not a proof: it begins with {FORMAT}, and has a checkpoint under a blank line")
        extra = _decoded(lines.pop(0).removeprefix("extra ")) if lines and lines[0].startswith("extra ") else None
        index = _INDEX.fullmatch(lines.pop(0)) if lines else None
        if index is None or len(lines) > PROOF_HASHES_MAX:
            raise BadProof("not a proof: an index and the hashes up to the root")
        hashes = tuple(map(_decoded, lines))
        if any(len(one) != HASH_BYTES for one in hashes):
            raise BadProof(f"not a proof: a hash has {HASH_BYTES} bytes")
        try:
            return cls(index=int(index[1]), hashes=hashes, note=Note.parse(note.encode()), extra=extra)
        except BadNote as fault:
            raise BadProof(f"its checkpoint: {fault}") from fault

    def encode(self) -> bytes:
        """As it is kept: `.tlog-proof`."""
        extra = [] if self.extra is None else [f"extra {_encoded(self.extra)}"]
        lines = [FORMAT, *extra, f"index {self.index}", *map(_encoded, self.hashes), "", ""]
        return "\n".join(lines).encode() + self.note.encode()

    def check(self, *, verifier: Verifier, entry: bytes) -> Checkpoint:
        """The checkpoint that has this record. Raises `BadProof` if that is not proven."""
        try:
            self.note.verified([verifier])
        except BadNote as fault:
            raise BadProof(f"its checkpoint: {fault}{self._other_key(verifier)}") from fault
        checkpoint = _checkpoint(self.note)
        if checkpoint.origin != verifier.name:
            raise BadProof(f"its checkpoint is of the log {checkpoint.origin}, and not of {verifier.name}")
        if not self._holds(checkpoint, entry):
            raise BadProof(f"it does not show that this record stands at {self.index} of {checkpoint.size}")
        return checkpoint

    def _other_key(self, verifier: Verifier) -> str:
        """A log keeps its name when it changes its key."""
        if not any(signature.name == verifier.name for signature in self.note.signatures):
            return ""
        return (
            "; another key of that name has signed it: if the log has changed its key since you were given yours, have the proof"
            " made with `weir audit prove ... --key YOURS`, or take the new key from somebody you trust"
        )

    def _holds(self, checkpoint: Checkpoint, entry: bytes) -> bool:
        return check_inclusion(
            leaf=leaf_hash(entry), index=self.index, size=checkpoint.size, root=checkpoint.root, proof=self.hashes
        )


def _checkpoint(note: Note) -> Checkpoint:
    try:
        return Checkpoint.parse(note.text)
    except BadNote as fault:
        raise BadProof(f"its checkpoint: {fault}") from fault


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: str) -> bytes:
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as fault:
        raise BadProof("not a proof: base64 is damaged") from fault
    if _encoded(decoded) != text:
        raise BadProof("not a proof: base64 with bits that mean nothing")
    return decoded
