"""Public keys in a policy: who may read what was said, and who may say that it goes on."""

from __future__ import annotations

import base64
import re

import pytest

from policy.document import parse
from policy.mistakes import Mistakes
from policy.public_key import AUDITORS_MAX, SIGNERS_MAX
from policy.rules import Audit, LicenceRule, Policy, PublicKey

SMALL = f"""\
listen: 127.0.0.1:8080
admin: 127.0.0.1:9090
models:
  demo:
    upstream: http://127.0.0.1:8001
    weights: {{parameters: 135M}}
    theft_compression: 4
    budgets:
      - {{window: 1d, time_to_theft: 30d}}
tenants:
  acme:
    keys: [sha256:{"ab" * 32}]
    models: [demo]
"""


def auditor(name: str, byte: int = 1, *, algorithm: str = "x25519", size: int = 32) -> str:
    return f"weir-auditor-{algorithm}:{name}:{base64.b64encode(bytes([byte]) * size).decode()}"


def signer(name: str, byte: int = 1) -> str:
    return f"weir-signer-ed25519:{name}:{base64.b64encode(bytes([byte]) * 32).decode()}"


def with_auditors(*keys: str) -> str:
    return SMALL + f"audit: {{auditors: [{', '.join(keys)}]}}\n"


def with_licence(*keys: str, threshold: object = 2, gateway: str = "gate-1") -> str:
    listed = ", ".join(keys or [signer("ann", 1), signer("bob", 2), signer("cy", 3)])
    return SMALL + f"licence: {{file: ./l.json, keys: [{listed}], threshold: {threshold}, gateway: {gateway}}}\n"


def rules(text: str) -> Policy:
    policy = parse(text, name="weir.yaml")
    assert isinstance(policy, Policy), policy.render()
    return policy


def mistakes(text: str) -> list[str]:
    found = parse(text, name="weir.yaml")
    assert isinstance(found, Mistakes), found
    return [line.removeprefix("weir.yaml:") for line in found.render().splitlines()]


def test_auditors_stand_in_the_order_of_their_names_whatever_their_kind() -> None:
    policy = rules(with_auditors(auditor("zoe", 2, algorithm="xwing", size=1216), auditor("ann")))
    ann, zoe = policy.audit.auditors
    assert ann == PublicKey(algorithm="x25519", name="ann", encoded=base64.b64encode(b"\1" * 32).decode())
    assert (zoe.algorithm, zoe.raw) == ("xwing", b"\2" * 1216)
    assert policy.audit.directory == "./var/audit"


def test_no_auditors_are_a_decision_that_leaves_the_digest_as_it_was() -> None:
    assert rules(SMALL + "audit: {auditors: []}\n").digest == rules(SMALL).digest
    assert rules(SMALL).audit == Audit(directory="./var/audit", auditors=())
    assert rules(with_auditors(auditor("a", 1), auditor("b", 2))).digest != rules(SMALL).digest


def test_a_licence_rule_arrives_whole() -> None:
    assert rules(with_licence(signer("bob", 2), signer("ann", 1))).licence == LicenceRule(
        file="./l.json",
        keys=tuple(
            PublicKey(algorithm="ed25519", name=name, encoded=base64.b64encode(bytes([byte]) * 32).decode())
            for name, byte in (("ann", 1), ("bob", 2))
        ),
        threshold=2,
        gateway="gate-1",
    )
    assert rules(SMALL).licence is None


def test_the_digest_covers_who_signs_and_how_many_but_not_which_gateway_this_is() -> None:
    licensed = rules(with_licence()).digest
    assert licensed == rules(with_licence(gateway="gate-2")).digest
    assert len({licensed, rules(SMALL).digest, rules(with_licence(threshold=1)).digest}) == 3
    assert licensed != rules(with_licence(signer("ann", 1), signer("bob", 2))).digest


CUT = auditor("ann")[:-8]
NOT_CANONICAL = auditor("ann")[:-2] + "F="  # the same 32 bytes, in a spelling with stray bits


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (with_auditors(auditor("ann")), "audit.auditors: one auditor who loses a key loses the record: name at least two, or none"),
        (with_auditors(auditor("a"), auditor("b")), "audit.auditors[1]: is the key of 'a', under another name"),
        (with_auditors(auditor("a"), auditor("a", 2)), "audit.auditors[1]: the name 'a' is already listed"),
        (with_auditors(CUT, auditor("b")), "audit.auditors[0]: is cut or mistyped; write the whole line that `weir keys auditor NAME` printed"),
        (with_auditors(CUT[:-1], auditor("b")), "audit.auditors[0]: is cut or mistyped; write the whole line that `weir keys auditor NAME` printed"),
        (with_auditors(NOT_CANONICAL, auditor("b")), "audit.auditors[0]: is cut or mistyped; write the whole line that `weir keys auditor NAME` printed"),
        (with_auditors(auditor("a", algorithm="xwing"), auditor("b", 2)), "audit.auditors[0]: is cut or mistyped; write the whole line that `weir keys auditor NAME` printed"),
        (with_auditors(signer("a"), auditor("b")), "audit.auditors[0]: is not a public key for this; write the line that `weir keys auditor NAME` printed"),
        (with_auditors(*(auditor(f"a{n}", n) for n in range(AUDITORS_MAX + 1))), f"audit.auditors: must have at most {AUDITORS_MAX} entries"),
        (with_licence(auditor("a")), "licence.keys[0]: is not a public key for this; write the line that `weir licence key NAME` printed"),
        (with_licence(signer("a"), signer("b"), threshold=1), "licence.keys[1]: is the key of 'a', under another name"),
        (with_licence(*(signer(f"s{n}", n) for n in range(SIGNERS_MAX + 1))), f"licence.keys: must have at most {SIGNERS_MAX} entries"),
        (with_licence(threshold=4), "licence.threshold: must not be more than the number of keys, 3: no licence could be signed"),
        (with_licence(threshold=0), f"licence.threshold: '0' is not a whole number from 1 to {SIGNERS_MAX}"),
        (with_licence(threshold="'2'"), "licence.threshold: '2' is text here; write it without quotes"),
        (with_licence(gateway="'a b'"), "licence.gateway: 'a b' is not a name; write up to 64 letters, digits, '.', '_', '-', first a letter or digit"),
        (SMALL + "licence: {}\n", "licence.gateway: is missing"),
    ],
)  # fmt: skip
def test_a_mistake_says_what_to_write_and_repeats_no_key(text: str, line: str) -> None:
    found = mistakes(text)
    assert line in [re.sub(r"^14:\d+: ", "", mistake) for mistake in found]
    assert all("AQEB" not in mistake for mistake in found)


@pytest.mark.parametrize(("threshold", "bytes_"), [(0, (1, 2)), (3, (1, 2)), (2, (1, 1))])
def test_a_rule_that_one_person_could_meet_alone_cannot_be_built(threshold: int, bytes_: tuple[int, ...]) -> None:
    keys = tuple(PublicKey(algorithm="ed25519", name=str(n), encoded=str(byte)) for n, byte in enumerate(bytes_))
    with pytest.raises(ValueError, match="distinct keys"):
        LicenceRule(file="l", keys=keys, threshold=threshold, gateway="g")
