"""A batch is leaves, and what they commit to, sealed: no more, no less, and in order."""

import base64
import hashlib
import os

import msgspec
import pytest

from gateway.audit import batch as batches
from gateway.audit.batch import Scribe
from gateway.audit.sealing import Sealer, auditor_secret, commitment, public_bytes, unseal
from gateway.clock import SystemClock
from gateway.record import Entry, Opened, Released, Stopped
from policy.release import Ending, Outcome, Release, ToolCall
from policy.rules import PublicKey

ORIGIN = "weir.log/0123456789abcdef"


@pytest.fixture
def secrets():
    return [auditor_secret("x25519", bytes([number]) * 32) for number in (1, 2)]


@pytest.fixture
def scribe():
    keys = [
        PublicKey(name=name, algorithm="x25519", encoded=_encoded(number))
        for number, name in enumerate(("ann", "bob"), start=1)
    ]
    sealer = Sealer(keys, origin=ORIGIN, random=os.urandom)
    return Scribe(sealer=sealer, clock=SystemClock())


def _encoded(number):
    return base64.b64encode(public_bytes("x25519", bytes([number]) * 32)).decode()


def opened(number=0):
    return Opened(
        at_ms=1,
        answer=f"a{number}",
        holder="h",
        accounts=("m",),
        tenant="t",
        model="m",
        route="/r",
        seed=1,
        request_bytes=5,
    )


def released():
    return Released(at_ms=2, answer="a0", tick=1, idle_ticks=0, text_bytes=5, charged_bits=40, outcome="tool_calls")


def leaves(batch):
    return [msgspec.json.decode(line) for line in batch.lines.split(b"\n")]


def contents(batch, secret):
    sealed = leaves(batch)[-1]
    assert sealed["type"] == "sealed"
    assert (sealed["sha256"], sealed["bytes"]) == (hashlib.sha256(batch.ciphertext).hexdigest(), len(batch.ciphertext))
    return unseal(batch.ciphertext, secret, origin=ORIGIN, batch=sealed["batch"])


def test_what_was_said_is_in_the_ciphertext_for_each_auditor_and_committed_to_in_its_leaf(scribe, secrets):
    call = ToolCall(name="look", arguments='{"at":"sky"}')
    release = Release(
        idle_ticks=0, quanta=0, text="hello", ending=Ending(outcome=Outcome.TOOL_CALLS, tool_calls=(call,))
    )
    entries = [Entry(opened(), b'{"prompt":"hi"}'), Entry(Stopped(at_ms=1, holder="h")), Entry(released(), release)]
    (batch,) = scribe.batches(entries)
    first, second, third, _ = leaves(batch)
    for secret in secrets:
        request, said = contents(batch, secret)
        assert (request.data, commitment(request)) == (b'{"prompt":"hi"}', first["content"])
        assert commitment(said) == third["content"]
        kept = msgspec.json.decode(said.data)
        assert (kept["text"], kept["ending"]["tool_calls"]) == (
            "hello",
            [{"name": "look", "arguments": '{"at":"sky"}'}],
        )
    assert "content" not in second
    assert b"hello" not in batch.lines + batch.ciphertext


def test_the_same_words_are_committed_to_differently_each_time(scribe):
    (batch,) = scribe.batches([Entry(opened(n), b"yes") for n in range(2)])
    first, second, _ = leaves(batch)
    assert first["content"] != second["content"], "a short answer cannot be found by guessing"


def test_a_batch_without_content_has_nothing_sealed(scribe):
    (batch,) = scribe.batches([Entry(Stopped(at_ms=1, holder="h"))])
    assert (leaves(batch), batch.ciphertext) == ([{"type": "stopped", "at_ms": 1, "holder": "h"}], b"")


def test_without_auditors_no_content_is_kept_and_none_is_spoken_of():
    (batch,) = Scribe(sealer=None, clock=SystemClock()).batches(
        [Entry(opened(), b"secret"), Entry(released(), b"words")]
    )
    assert batch.ciphertext == b""
    assert all("content" not in leaf for leaf in leaves(batch))


def test_very_much_is_sealed_in_several_batches_in_order(scribe, secrets, monkeypatch):
    monkeypatch.setattr(batches, "CONTENT_BYTES_TOGETHER", 100)
    made = list(scribe.batches([Entry(opened(n), b"%d" % n * 60) for n in range(5)]))
    assert len(made) == 3
    said = [content.data for batch in made for content in contents(batch, secrets[0])]
    assert said == [b"%d" % n * 60 for n in range(5)]
    assert [leaf["answer"] for batch in made for leaf in leaves(batch) if leaf["type"] == "opened"] == [
        f"a{n}" for n in range(5)
    ]


def test_every_leaf_is_small(scribe):
    accounts = tuple(f"tenant:{'x' * 64}/{'y' * 64}/sliding 1d/{n}" for n in range(6))
    leaf = msgspec.structs.replace(opened(), accounts=accounts, tenant="x" * 64, model="y" * 64)
    (batch,) = scribe.batches([Entry(leaf, b"1")])
    assert max(map(len, batch.lines.split(b"\n"))) <= 2048
