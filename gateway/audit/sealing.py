"""Sealing what was said to the auditors: whoever has the gateway, its keys and its disk cannot read what was sealed before.

A gateway holds the auditors' public keys only. About once a second it begins a *chain*: a fresh key, sealed by HPKE (RFC 9180,
base mode) to every auditor. Each batch takes one message key from the chain and then the chain moves on by HMAC-SHA256, which
nobody can turn back: memory that is read later has neither the keys of earlier batches nor what they came from. It could read
on until the next chain begins. (Python does not overwrite what it lets go of. A memory image may hold pieces of the last
chain until they are reused; of what came before that, nothing has a reason to be there.)

The expensive part, a public-key operation an auditor, is thus paid once a chain. Every sealed batch nevertheless opens by
itself: it repeats the sealed chain key, and says how many steps along the chain it lies.

    magic, version, auditors, step, chain id | per auditor: kind, key id, length, sealed chain key | AES-256-GCM(zstd(contents))

All that stands before the ciphertext, the log's origin and the batch's id are authenticated with it; origin, chain and auditors are
bound to the sealed keys through HPKE's `info`. A batch therefore opens only whole, in its place, in its log. AES-GCM does not
commit to its key, so a dishonest gateway could seal other things to each auditor: the commitments in the leaves are what
holds it to one content, and who opens a batch checks them. The length of a batch is public and depends on all that is in it.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backports.zstd import ZstdCompressor, ZstdDecompressor, ZstdError
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from policy.rules import PublicKey

SALT_BYTES = 32  # a short answer must not be found by guessing
CHAIN_S = 1.0  # how long one chain is used, and so how far memory that is read can read on
CHAIN_STEPS_MAX = 4096  # an auditor walks along the chain to each batch: milliseconds
AUDITORS_MIN, AUDITORS_MAX = 2, 8
CONTENTS_MAX = 100_000  # of one batch; a tick has at most one a stream
CONTENTS_BYTES_MAX = 64 * 1024 * 1024  # of one batch, unpacked; a tick releases 4 KiB a stream, requests have 4 MiB
SEALED_BYTES_MAX = CONTENTS_BYTES_MAX + 1024 * 1024  # with the header; zstd grows nothing by more
LEVEL = 1  # measured on pieces of 48 bytes: level 3 takes 1.7 times as long for 2 % fewer bytes

_MAGIC = b"WEIRSEAL"
_VERSION = 1
_HEADER = struct.Struct(">8sBBH16s")
_SLOT = struct.Struct(">B8sH")
_CONTENT = struct.Struct(f">I{SALT_BYTES}s")
_KEY_BYTES, _CHAIN_ID_BYTES, _TAG_BYTES = 32, 16, 16
_NONCE = bytes(12)  # every key is used once
_KINDS = {"x25519": 1, "xwing": 2}
_SUITES = {
    "x25519": Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
    "xwing": Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
}
_SLOT_BYTES = {
    "x25519": KEM.X25519.enc_length() + _KEY_BYTES + _TAG_BYTES,
    "xwing": KEM.MLKEM768_X25519.enc_length() + _KEY_BYTES + _TAG_BYTES,
}
_MLKEM_PUBLIC_BYTES, _MLKEM_SEED_BYTES = 1184, 64


class Unsealable(Exception):
    """This cannot be opened. The message says why; it quotes nothing of the content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Something that was said, and the salt of the commitment to it in its leaf."""

    salt: bytes
    data: bytes

    def __post_init__(self) -> None:
        if len(self.salt) != SALT_BYTES:
            raise ValueError(f"a salt has {SALT_BYTES} bytes")


def commitment(content: Content) -> str:
    """What a leaf says of its content, in hex: binding, and without the salt of no help to whoever guesses."""
    return hashlib.sha256(b"weir content commitment 1\n" + content.salt + content.data).hexdigest()


class Sealer:
    """Seals the batches of one process, in order. `random` gives so many bytes that nobody can guess."""

    def __init__(self, auditors: Sequence[PublicKey], *, origin: str, random: Callable[[int], bytes]) -> None:
        if not AUDITORS_MIN <= len(auditors) <= AUDITORS_MAX:
            raise ValueError(f"content is sealed to {AUDITORS_MIN} to {AUDITORS_MAX} auditors")
        self._auditors = [(key.algorithm, key_id(key), _public(key)) for key in auditors]
        self._origin = origin
        self._random = random
        self._compressor = ZstdCompressor(level=LEVEL)
        self._chain = b""
        self._chain_id = b""
        self._slots = b""
        self._step = CHAIN_STEPS_MAX
        self._renew_at_s = 0.0

    def seal(self, contents: Sequence[Content], *, batch: str, now_s: float) -> bytes:
        """Seal a batch whose id is `batch`. `now_s` is a clock that does not step back; it decides only when chains begin."""
        if self._step == CHAIN_STEPS_MAX or now_s >= self._renew_at_s:
            self._begin_chain(now_s)
        header = _HEADER.pack(_MAGIC, _VERSION, len(self._auditors), self._step, self._chain_id) + self._slots
        packed = self._compressor.compress(_joined(contents), mode=ZstdCompressor.FLUSH_FRAME)
        message_key = _message_key(self._chain)
        # First the chain moves on: a fault below loses this batch, and never uses one key twice.
        self._chain, self._step = _next(self._chain), self._step + 1
        return header + AESGCM(message_key).encrypt(_NONCE, packed, _bound(header, self._origin, batch))

    def _begin_chain(self, now_s: float) -> None:
        chain, self._chain_id = self._random(_KEY_BYTES), self._random(_CHAIN_ID_BYTES)
        info = _info(self._origin, self._chain_id, [name for _, name, _ in self._auditors])
        self._slots = b""
        for kind, name, public in self._auditors:
            sealed = _SUITES[kind].encrypt(chain, public, info)
            self._slots += _SLOT.pack(_KINDS[kind], name, len(sealed)) + sealed
        self._chain, self._step, self._renew_at_s = chain, 0, now_s + CHAIN_S


def unseal(blob: bytes, secret: AuditorSecret, *, origin: str, batch: str) -> list[Content]:
    """The contents of a batch, for one of its auditors. Raises `Unsealable` for anything that is not exactly what was sealed."""
    header, step, chain_id, slots = _parsed(blob)
    sealed = next((sealed for kind, name, sealed in slots if (kind, name) == (secret.algorithm, secret.id)), None)
    if sealed is None:
        raise Unsealable(f"this batch is sealed to {len(slots)} auditors, and this key is none of theirs")
    info = _info(origin, chain_id, [name for _, name, _ in slots])
    try:
        chain = _SUITES[secret.algorithm].decrypt(sealed, secret.private, info)
    except (InvalidTag, ValueError) as fault:
        raise Unsealable("the sealed key was changed, or is of another log") from fault
    for _ in range(step):
        chain = _next(chain)
    try:
        packed = AESGCM(_message_key(chain)).decrypt(_NONCE, blob[len(header) :], _bound(header, origin, batch))
    except InvalidTag as fault:
        raise Unsealable("the batch was changed, or is of another log or place") from fault
    return _split(_unpacked(packed))


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditorSecret:
    """What an auditor opens batches with. `raw` is what its file holds: nothing of it is ever shown."""

    algorithm: str
    id: bytes
    private: X25519PrivateKey | MLKEM768X25519PrivateKey


SECRET_BYTES = {"x25519": 32, "xwing": _MLKEM_SEED_BYTES + 32}


def auditor_secret(algorithm: str, raw: bytes) -> AuditorSecret:
    """From the bytes of a private key, which are as many random bytes as `SECRET_BYTES` says."""
    return AuditorSecret(
        algorithm=algorithm, id=_id(algorithm, public_bytes(algorithm, raw)), private=_private(algorithm, raw)
    )


def public_bytes(algorithm: str, raw: bytes) -> bytes:
    """The public key of a private one."""
    if algorithm == "x25519":
        return X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()
    mlkem = MLKEM768PrivateKey.from_seed_bytes(raw[:_MLKEM_SEED_BYTES])
    x25519 = X25519PrivateKey.from_private_bytes(raw[_MLKEM_SEED_BYTES:])
    return mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()


def key_id(key: PublicKey) -> bytes:
    """Names an auditor's key within a batch, whatever its owner is called."""
    return _id(key.algorithm, key.raw)


def _id(algorithm: str, raw: bytes) -> bytes:
    return hashlib.sha256(f"weir-auditor-{algorithm}\n".encode() + raw).digest()[:8]


def _private(algorithm: str, raw: bytes) -> X25519PrivateKey | MLKEM768X25519PrivateKey:
    if algorithm == "x25519":
        return X25519PrivateKey.from_private_bytes(raw)
    return MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(raw[:_MLKEM_SEED_BYTES]),
        X25519PrivateKey.from_private_bytes(raw[_MLKEM_SEED_BYTES:]),
    )


def _public(key: PublicKey) -> X25519PublicKey | MLKEM768X25519PublicKey:
    if key.algorithm == "x25519":
        return X25519PublicKey.from_public_bytes(key.raw)
    return MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(key.raw[:_MLKEM_PUBLIC_BYTES]),
        X25519PublicKey.from_public_bytes(key.raw[_MLKEM_PUBLIC_BYTES:]),
    )


def _next(chain: bytes) -> bytes:
    return hmac.digest(chain, b"weir seal 1 chain", "sha256")


def _message_key(chain: bytes) -> bytes:
    return hmac.digest(chain, b"weir seal 1 message", "sha256")


def _info(origin: str, chain_id: bytes, names: Sequence[bytes]) -> bytes:
    return b"weir seal 1\n" + chain_id + bytes([len(names)]) + b"".join(names) + origin.encode()


def _bound(header: bytes, origin: str, batch: str) -> bytes:
    place = origin.encode()
    return header + struct.pack(">I", len(place)) + place + batch.encode()


def _joined(contents: Sequence[Content]) -> bytes:
    joined = b"".join([_CONTENT.pack(len(content.data), content.salt) + content.data for content in contents])
    if len(contents) > CONTENTS_MAX or len(joined) > CONTENTS_BYTES_MAX:
        raise ValueError("a batch is larger than whoever opens it would take")
    return joined


def _parsed(blob: bytes) -> tuple[bytes, int, bytes, list[tuple[str, bytes, bytes]]]:
    """Header, step, chain id, and each auditor's kind, key id and sealed chain key."""
    if len(blob) > SEALED_BYTES_MAX:
        raise Unsealable(f"over {SEALED_BYTES_MAX} bytes")
    try:
        magic, version, auditors, step, chain_id = _HEADER.unpack_from(blob)
        if magic != _MAGIC:
            raise Unsealable("this is no sealed batch")
        if version != _VERSION:
            raise Unsealable(f"format {version} is not known to this version")
        if not AUDITORS_MIN <= auditors <= AUDITORS_MAX or step >= CHAIN_STEPS_MAX:
            raise Unsealable("the header is not one that a gateway writes")
        offset, slots = _HEADER.size, []
        for _ in range(auditors):
            number, name, length = _SLOT.unpack_from(blob, offset)
            kind = next((kind for kind, known in _KINDS.items() if known == number), None)
            if kind is None or length != _SLOT_BYTES[kind]:
                raise Unsealable("the header is not one that a gateway writes")
            offset += _SLOT.size + length
            slots.append((kind, name, blob[offset - length : offset]))
    except struct.error as cut:
        raise Unsealable("cut off within the header") from cut
    if len(blob) < offset + _TAG_BYTES:
        raise Unsealable("cut off")
    return blob[:offset], step, chain_id, slots


def _unpacked(packed: bytes) -> bytes:
    decompressor = ZstdDecompressor()
    try:
        joined = decompressor.decompress(packed, max_length=CONTENTS_BYTES_MAX + 1)
    except ZstdError as fault:
        raise Unsealable("what was sealed is not compressed as it should be") from fault
    if len(joined) > CONTENTS_BYTES_MAX or not decompressor.eof or decompressor.unused_data:
        raise Unsealable("what was sealed is not compressed as it should be")
    return joined


def _split(joined: bytes) -> list[Content]:
    contents: list[Content] = []
    offset = 0
    while offset < len(joined):
        if len(joined) - offset < _CONTENT.size or len(contents) == CONTENTS_MAX:
            raise Unsealable("what was sealed is not a list of contents")
        length, salt = _CONTENT.unpack_from(joined, offset)
        offset += _CONTENT.size + length
        if offset > len(joined):
            raise Unsealable("what was sealed is not a list of contents")
        contents.append(Content(salt=salt, data=joined[offset - length : offset]))
    return contents
