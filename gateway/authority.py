"""The operating licence: what one says, who has signed it, and whether it holds here and now. Pure; no clock, no disk.

A licence is a DSSE envelope (github.com/secure-systems-lab/dsse, protocol 1.0) around canonical JSON. It names a policy by digest
and the gateways it is for, and it ends. As in TUF (section 1.5.2 of its specification) its version never goes back and time
never either: what was in force here is remembered, and an older licence or an earlier hour is refused. Signatures are counted
by key, never by signature and never by the key id that an envelope claims.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Literal, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta, Struct

from policy.document import parse
from policy.rules import LicenceRule, Policy, PublicKey
from policy.strictness import looser

_Body = TypeVar("_Body", bound=Struct)

PAYLOAD_TYPE = "application/vnd.weir.licence+json"
AMENDMENT_TYPE = "application/vnd.weir.amendment+json"
ENVELOPE_BYTES_MAX = 64 * 1024  # a thousand gateways fit
AMENDMENT_BYTES_MAX = 2 * 1024 * 1024  # holds the text of a policy
SIGNATURES_MAX = 64  # each is tried with each key
GATEWAYS_MAX = 1024
TIME_S_END = 253_402_300_800  # the year 10000, which nothing prints
VERSION_MAX = 2**53 - 1  # what every JSON reader holds

_Seconds = Annotated[int, Meta(ge=0, lt=TIME_S_END)]
_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]


class Terms(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is signed. Members in the order of canonical JSON."""

    expires: _Seconds  # Unix time; from here on nothing leaves
    format: Literal["weir-licence-1"] = "weir-licence-1"
    gateways: Annotated[tuple[_Name, ...], Meta(min_length=1, max_length=GATEWAYS_MAX)]
    not_before: _Seconds
    policy: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]  # its digest
    version: Annotated[int, Meta(ge=1, le=VERSION_MAX)]


class Change(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one signature may say: from the licensed policy to one that permits no more. Members in canonical order."""

    format: Literal["weir-amendment-1"] = "weir-amendment-1"
    licensed: str  # the text of the licensed policy: its digest is in the licence
    policy: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]  # the digest of the new one


class _Signature(Struct, frozen=True, forbid_unknown_fields=True):
    keyid: Annotated[str, Meta(max_length=256)]
    sig: Annotated[str, Meta(max_length=256)]


class _Envelope(Struct, frozen=True, forbid_unknown_fields=True):
    payload: str
    payloadType: str  # noqa: N815  the name that DSSE gives it
    signatures: Annotated[tuple[_Signature, ...], Meta(max_length=SIGNATURES_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """Terms, and the signatures under them as they came: nothing of it is checked yet but its form."""

    terms: Terms
    signatures: tuple[tuple[str, bytes], ...] = ()  # the key id that is claimed, and the signature

    @property
    def digest(self) -> str:
        """Names the terms, whoever signed them."""
        return hashlib.sha256(_payload(self.terms)).hexdigest()

    def signers(self, keys: tuple[PublicKey, ...]) -> tuple[PublicKey, ...]:
        """Those of these keys that have signed, each once."""
        return _signers(keys, self.signatures, _signed(PAYLOAD_TYPE, _payload(self.terms)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Amendment:
    """A change and the signatures under it. Good for every licence that names the policy it starts from."""

    change: Change
    signatures: tuple[tuple[str, bytes], ...] = ()

    def signers(self, keys: tuple[PublicKey, ...]) -> tuple[PublicKey, ...]:
        """Those of these keys that have signed, each once."""
        return _signers(keys, self.signatures, _signed(AMENDMENT_TYPE, _payload(self.change)))


class Cause(Enum):
    """Why nothing may leave. The values are what logs and the audit log say."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    UNDER_SIGNED = "under_signed"
    OTHER_GATEWAY = "other_gateway"
    OTHER_POLICY = "other_policy"
    ROLLED_BACK = "rolled_back"
    NOT_YET_VALID = "not_yet_valid"
    EXPIRED = "expired"
    CLOCK_SET_BACK = "clock_set_back"
    NOT_REMEMBERED = "not_remembered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """No licence in force. `detail` is for the operator; it says what is wrong and with which figures."""

    cause: Cause
    detail: str


class Memory(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was in force here before. Grows only."""

    version: int = 0
    terms: str = ""  # the digest of the licence that had this version
    latest_s: int = 0  # the latest time at which a licence was in force, or its end

    def with_licence(self, licence: Licence) -> Memory:
        """Having taken this licence."""
        if licence.terms.version <= self.version:
            return self
        return Memory(version=licence.terms.version, terms=licence.digest, latest_s=self.latest_s)

    def at(self, now_s: float, licence: Licence) -> Memory:
        """At this time, under this licence. Its end is late enough: a clock that ran ahead must not outlive the next licence."""
        latest_s = max(self.latest_s, min(int(now_s), licence.terms.expires))
        return Memory(version=self.version, terms=self.terms, latest_s=latest_s)

    def joined(self, other: Memory) -> Memory:
        """What either of two processes remembers."""
        newer = max(self, other, key=lambda memory: memory.version)
        latest_s = max(self.latest_s, other.latest_s)
        return Memory(version=newer.version, terms=newer.terms, latest_s=latest_s)


def read(data: bytes) -> Licence | Denied:
    """The envelope in a file. Strict: one spelling of each envelope's content, so that a digest names what a person reads."""
    opened = _opened(data, PAYLOAD_TYPE, Terms, bytes_max=ENVELOPE_BYTES_MAX)
    if isinstance(opened, Denied):
        return opened
    terms, signatures = opened
    if terms.not_before >= terms.expires:
        return _unreadable("it ends before it begins")
    return Licence(terms=terms, signatures=signatures)


def read_amendment(data: bytes) -> Amendment | Denied:
    """Likewise of an amendment."""
    opened = _opened(data, AMENDMENT_TYPE, Change, bytes_max=AMENDMENT_BYTES_MAX)
    return opened if isinstance(opened, Denied) else Amendment(change=opened[0], signatures=opened[1])


def written(envelope: Licence | Amendment) -> bytes:
    """The envelope as a file holds it."""
    if isinstance(envelope, Licence):
        return _closed(PAYLOAD_TYPE, envelope.terms, envelope.signatures)
    return _closed(AMENDMENT_TYPE, envelope.change, envelope.signatures)


def sign(licence: Licence, private: Ed25519PrivateKey) -> Licence | None:
    """With one more signature; None if this key has signed it already."""
    public = private.public_key().public_bytes_raw()
    own = PublicKey(algorithm="ed25519", name="own", encoded=base64.b64encode(public).decode())
    if licence.signers((own,)):
        return None
    signature = (key_id(own), private.sign(_signed(PAYLOAD_TYPE, _payload(licence.terms))))
    return Licence(terms=licence.terms, signatures=(*licence.signatures, signature))


def amend(change: Change, private: Ed25519PrivateKey) -> Amendment:
    """A change with its signature."""
    public = private.public_key().public_bytes_raw()
    own = PublicKey(algorithm="ed25519", name="own", encoded=base64.b64encode(public).decode())
    return Amendment(
        change=change, signatures=((key_id(own), private.sign(_signed(AMENDMENT_TYPE, _payload(change)))),)
    )


def key_id(key: PublicKey) -> str:
    """A hint to readers which key has signed. Nothing rests on it."""
    return hashlib.sha256(key.raw).hexdigest()


def authentic(licence: Licence, rule: LicenceRule) -> Denied | None:
    """What is wrong with it here at any time: who signed it, and for whom."""
    signers = licence.signers(rule.keys)
    if len(signers) < rule.threshold:
        who = f" ({', '.join(key.name for key in signers)})" if signers else ""
        return Denied(
            cause=Cause.UNDER_SIGNED,
            detail=f"{len(signers)} of the policy's keys have signed{who}, and {rule.threshold} must have",
        )
    if rule.gateway not in licence.terms.gateways:
        detail = f"it is for {', '.join(licence.terms.gateways[:8])}, and this is {rule.gateway}"
        return Denied(cause=Cause.OTHER_GATEWAY, detail=detail)
    return None


def fresh(licence: Licence, memory: Memory) -> Denied | None:
    """Whether it is at least as new as what was in force here."""
    version = licence.terms.version
    if version < memory.version:
        detail = f"it is version {version}, and version {memory.version} was in force here already"
        return Denied(cause=Cause.ROLLED_BACK, detail=detail)
    if version == memory.version and licence.digest != memory.terms:
        detail = f"another licence was version {version} already; a new one takes a new version"
        return Denied(cause=Cause.ROLLED_BACK, detail=detail)
    return None


def covers(licence: Licence, policy: str) -> Denied | None:
    """Whether it is for the policy with this digest."""
    if licence.terms.policy == policy:
        return None
    return Denied(cause=Cause.OTHER_POLICY, detail=f"it is for policy {licence.terms.policy}, and this is {policy}")


def amended(amendment: Amendment, licence: Licence, policy: Policy, rule: LicenceRule) -> Denied | None:
    """Whether this lets the licence, which is for another policy, cover this one. Slow: the licensed policy is read anew."""
    if not amendment.signers(rule.keys):
        return Denied(cause=Cause.UNDER_SIGNED, detail="none of the policy's keys has signed the amendment")
    if amendment.change.policy != policy.digest:
        detail = f"the amendment is for policy {amendment.change.policy}, and this is {policy.digest}"
        return Denied(cause=Cause.OTHER_POLICY, detail=detail)
    licensed = parse(amendment.change.licensed, name="the licensed policy")
    if not isinstance(licensed, Policy) or licensed.digest != licence.terms.policy:
        return Denied(cause=Cause.OTHER_POLICY, detail="the amendment does not start from the licensed policy")
    beyond = looser(licensed, policy)
    if beyond:
        return Denied(cause=Cause.UNDER_SIGNED, detail=f"one signature may not loosen {', '.join(beyond)}")
    return None


def timely(licence: Licence, *, wall_s: float, latest_s: float) -> Denied | None:
    """Whether it holds at this time. `latest_s` is the latest time that was ever seen: it goes on where a clock goes back."""
    terms, now_s = licence.terms, max(wall_s, latest_s)
    if wall_s >= terms.expires:
        return Denied(cause=Cause.EXPIRED, detail=f"it ended at {time_text(terms.expires)}")
    if now_s >= terms.expires:
        detail = f"it ended at {time_text(terms.expires)}; the clock has been there and says {time_text(wall_s)} now"
        return Denied(cause=Cause.CLOCK_SET_BACK, detail=detail)
    if now_s < terms.not_before:
        return Denied(cause=Cause.NOT_YET_VALID, detail=f"it begins at {time_text(terms.not_before)}")
    return None


def objection(
    licence: Licence, *, rule: LicenceRule, policy: str, memory: Memory, wall_s: float, latest_s: float
) -> Denied | None:
    """All of the above; what cannot be put right by waiting comes first."""
    return (
        authentic(licence, rule)
        or fresh(licence, memory)
        or covers(licence, policy)
        or timely(licence, wall_s=wall_s, latest_s=max(latest_s, memory.latest_s))
    )


def time_text(at_s: float) -> str:
    """RFC 3339, to the second."""
    return datetime.fromtimestamp(int(at_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _opened(
    data: bytes, payload_type: str, kind: type[_Body], *, bytes_max: int
) -> tuple[_Body, tuple[tuple[str, bytes], ...]] | Denied:
    if len(data) > bytes_max:
        return _unreadable(f"over {bytes_max} bytes")
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        payload = base64.b64decode(envelope.payload, validate=True)
        body = msgspec.json.decode(payload, type=kind)
        signatures = tuple((each.keyid, base64.b64decode(each.sig, validate=True)) for each in envelope.signatures)
    except (msgspec.MsgspecError, binascii.Error, ValueError, RecursionError) as fault:
        return _unreadable(str(fault))
    if envelope.payloadType != payload_type:
        return _unreadable(f"the payload is not of type {payload_type}")
    if _payload(body) != payload:
        return _unreadable("the payload is not canonical JSON")
    return body, signatures


def _closed(payload_type: str, body: Struct, signatures: tuple[tuple[str, bytes], ...]) -> bytes:
    envelope = {
        "payload": base64.b64encode(_payload(body)).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": name, "sig": base64.b64encode(sig).decode()} for name, sig in signatures],
    }
    return msgspec.json.format(msgspec.json.encode(envelope)) + b"\n"


def _payload(body: Struct) -> bytes:
    return msgspec.json.encode(body, order="sorted")


def _signed(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: type and payload, each with its length."""
    return b"DSSEv1 %d %b %d %b" % (len(payload_type), payload_type.encode(), len(payload), payload)


def _signers(
    keys: tuple[PublicKey, ...], signatures: tuple[tuple[str, bytes], ...], message: bytes
) -> tuple[PublicKey, ...]:
    return tuple(key for key in keys if any(_verifies(key, sig, message) for _, sig in signatures))


def _verifies(key: PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key.raw).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _unreadable(why: str) -> Denied:
    return Denied(cause=Cause.UNREADABLE, detail=why)
