"""Signed notes, checkpoints and their cosignatures, as C2SP signed-note, tlog-checkpoint and tlog-cosignature have them.

A note is text with signature lines under it. Nothing in its text means anything before `Note.verified` has answered.
A checkpoint is a note that says how many leaves a log has and what their root is.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway.audit.tree import HASH_BYTES

NOTE_BYTES_MAX = 256 * 1024  # 16 signatures must be accepted, and a post-quantum one is nearly 7 kB of base64
SIGNATURES_MAX = 64
SIZE_MAX = 2**63 - 1  # what others' 64-bit signed integers hold
ED25519 = 0x01
COSIGNATURE = 0x04  # Ed25519 over a time and a checkpoint
_DASH = "— "
_KEY_ID_BYTES = 4
_TIME_BYTES = 8
_SIGNATURE_BYTES = 64
_PRIVATE = "PRIVATE+KEY+"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


class BadNote(Exception):
    """This is no note, key or checkpoint, or nobody known has signed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One signature line: whose key it claims to be of, and what that key made."""

    name: str
    key_id: bytes
    made: bytes

    def line(self) -> str:
        """As it stands under a note, with its newline."""
        return f"{_DASH}{self.name} {_encoded(self.key_id + self.made)}\n"

    def time_s(self) -> int:
        """When a cosignature was made, by its maker's clock; Unix epoch. Of a verified cosignature only."""
        return int.from_bytes(self.made[:_TIME_BYTES], "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier:
    """A public key that may have signed a note: a vkey. Raises `BadNote` on a name, kind or key that cannot be."""

    name: str
    public_key: bytes
    kind: int = ED25519
    key_id: bytes = field(init=False)

    def __post_init__(self) -> None:
        _check_name(self.name)
        if self.kind not in {ED25519, COSIGNATURE} or len(self.public_key) != 32:
            raise BadNote(f"key {self.name}: neither an Ed25519 nor a cosignature key")
        hashed = sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public_key).digest()
        object.__setattr__(self, "key_id", hashed[:_KEY_ID_BYTES])

    @classmethod
    def parse(cls, vkey: str) -> Self:
        """`<name>+<key id>+<base64 of kind and key>`."""
        name, key_id, key = _key_parts(vkey)
        verifier = cls(name=name, public_key=key[1:], kind=key[0])
        if verifier.key_id.hex() != key_id:
            raise BadNote(f"key {name}: its id is not the one of its bytes")
        return verifier

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{_encoded(bytes([self.kind]) + self.public_key)}"

    def made(self, signature: Signature) -> bool:
        """Whether a signature claims to be of this key."""
        return (signature.name, signature.key_id) == (self.name, self.key_id)

    def verify(self, text: str, signature: Signature) -> bool:
        """Whether this key made this signature of this text."""
        proof, message = signature.made, text.encode()
        if self.kind == COSIGNATURE:
            time_s = signature.time_s()
            if not 0 < time_s <= SIZE_MAX:
                return False
            proof, message = proof[_TIME_BYTES:], cosigned(text, time_s)
        if len(proof) != _SIGNATURE_BYTES:
            return False
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(proof, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A private Ed25519 key with a name: what Go's note package calls an skey."""

    name: str
    seed: bytes = field(repr=False)
    verifier: Verifier = field(init=False)

    def __post_init__(self) -> None:
        if len(self.seed) != 32:
            raise BadNote(f"key {self.name}: an Ed25519 seed has 32 bytes")
        object.__setattr__(
            self, "verifier", Verifier(name=self.name, public_key=self._key().public_key().public_bytes_raw())
        )

    @classmethod
    def parse(cls, skey: str) -> Self:
        """`PRIVATE+KEY+<name>+<key id>+<base64 of kind and seed>`."""
        if not skey.startswith(_PRIVATE):
            raise BadNote("not a private key")
        name, key_id, key = _key_parts(skey.removeprefix(_PRIVATE))
        if key[0] != ED25519:
            raise BadNote(f"key {name}: not an Ed25519 key")
        signer = cls(name=name, seed=key[1:])
        if signer.verifier.key_id.hex() != key_id:
            raise BadNote(f"key {name}: its id is not the one of its bytes")
        return signer

    def skey(self) -> str:
        """The private key as text: for a file that nobody else can read."""
        return f"{_PRIVATE}{self.name}+{self.verifier.key_id.hex()}+{_encoded(bytes([ED25519]) + self.seed)}"

    def sign(self, text: str) -> Signature:
        """Sign the text of a note."""
        return Signature(name=self.name, key_id=self.verifier.key_id, made=self._key().sign(text.encode()))

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Text, which ends in a newline, and the signatures under it."""

    text: str
    signatures: tuple[Signature, ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a note, strictly: whatever is not exactly a note is refused, so that it has one reading only."""
        if len(data) > NOTE_BYTES_MAX:
            raise BadNote(f"a note has at most {NOTE_BYTES_MAX} bytes")
        try:
            whole = data.decode()
        except UnicodeDecodeError as fault:
            raise BadNote("a note is UTF-8") from fault
        if any(character < " " and character != "\n" for character in whole):
            raise BadNote("a note has no control characters")
        text, blank, signed = whole.rpartition("\n\n")
        if not blank:
            raise BadNote("no blank line before the signatures")
        return cls(text=text + "\n", signatures=signatures(signed))

    def encode(self) -> bytes:
        """The note as it is published."""
        return (self.text + "\n" + "".join(signature.line() for signature in self.signatures)).encode()

    def verified(self, verifiers: Sequence[Verifier]) -> tuple[Signature, ...]:
        """The signatures by these keys, each of which has been checked; those of other keys mean nothing.

        Raises `BadNote` if there are none, or if one that claims to be by one of these keys is not.
        """
        known = []
        for signature in self.signatures:
            for verifier in verifiers:
                if not verifier.made(signature):
                    continue
                if not verifier.verify(self.text, signature):
                    raise BadNote(f"the signature by {verifier.name}+{verifier.key_id.hex()} is false")
                known.append(signature)
        if not known:
            raise BadNote(f"not signed by {' or '.join(map(str, verifiers)) or 'anybody known'}")
        return tuple(known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The text of a note that says what a log held. Extension lines of others are kept; ours has none."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.origin or not 0 <= self.size <= SIZE_MAX or len(self.root) != HASH_BYTES or "" in self.extensions:
            raise BadNote("a checkpoint is an origin, a size and a root hash, and lines that are not empty")
        if any(character < " " for line in (self.origin, *self.extensions) for character in line):
            raise BadNote("a line of a checkpoint has no control characters")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text of a verified note."""
        origin, *lines = text.split("\n")
        if len(lines) < 3 or lines.pop() or not _NUMBER.fullmatch(lines[0]):
            raise BadNote("not a checkpoint")
        return cls(origin=origin, size=int(lines[0]), root=_decoded(lines[1]), extensions=tuple(lines[2:]))

    def text(self) -> str:
        """The text to sign."""
        return "\n".join([self.origin, str(self.size), _encoded(self.root), *self.extensions, ""])

    def signed(self, signers: Sequence[Signer]) -> Note:
        """The note of this checkpoint with a signature by each signer."""
        text = self.text()
        return Note(text=text, signatures=tuple(signer.sign(text) for signer in signers))


def signatures(lines: str) -> tuple[Signature, ...]:
    """Read signature lines: one at least, each with its newline."""
    *rows, rest = lines.split("\n")
    if rest or not 0 < len(rows) <= SIGNATURES_MAX:
        raise BadNote(f"1 to {SIGNATURES_MAX} lines of signatures, each with a newline")
    return tuple(map(_signature, rows))


def cosigned(text: str, time_s: int) -> bytes:
    """What a cosignature signs: that by then this was the largest checkpoint its maker had seen of this log."""
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()


def _signature(row: str) -> Signature:
    name, space, encoded = row.removeprefix(_DASH).partition(" ")
    if not row.startswith(_DASH) or not space:
        raise BadNote("not a signature line")
    _check_name(name)
    decoded = _decoded(encoded)
    if len(decoded) <= _KEY_ID_BYTES:
        raise BadNote(f"the signature by {name} is too short")
    return Signature(name=name, key_id=decoded[:_KEY_ID_BYTES], made=decoded[_KEY_ID_BYTES:])


def _check_name(name: str) -> None:
    if not name or any(character.isspace() or character < " " or character == "+" for character in name):
        raise BadNote("the name of a key is not empty and has no space, control character or plus")


def _key_parts(key: str) -> tuple[str, str, bytes]:
    name, _, rest = key.partition("+")  # base64 has plus signs, too: not a split
    key_id, plus, encoded = rest.partition("+")
    decoded = _decoded(encoded)
    if not plus or not decoded:
        raise BadNote("a key is <name>+<key id>+<base64>")
    return name, key_id, decoded


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(encoded: str) -> bytes:
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as fault:
        raise BadNote("not base64") from fault
    if _encoded(decoded) != encoded:  # else one signature could be written in several ways
        raise BadNote("base64 with bits that mean nothing")
    return decoded
