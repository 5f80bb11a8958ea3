"""A log as a gateway would have left it: real segments, sealed content, a signed tree, older checkpoints that somebody kept."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
from collections import Counter
from pathlib import Path

from gateway.audit import segments
from gateway.audit.keys import prepare
from gateway.audit.log import SignedLog
from gateway.audit.note import Signer, Verifier
from gateway.audit.quorum import Quorum
from gateway.audit.sealing import AuditorSecret, auditor_secret, public_bytes
from gateway.audit.verification import OldCheckpoint, Verification
from gateway.clock import SystemClock
from gateway.metrics import Metrics
from gateway.record import Closed, Entry, LeaseClosed, LeaseGranted, Opened, Released, Settled, Started, Stopped
from policy.release import Ending, Outcome, Release
from policy.rules import Audit, PublicKey

SECRETS = {name: bytes([number]) * 32 for number, name in enumerate(("anna", "boris"), start=1)}
AUDITORS = tuple(
    PublicKey(algorithm="x25519", name=name, encoded=base64.b64encode(public_bytes("x25519", raw)).decode())
    for name, raw in SECRETS.items()
)
ACCOUNTS = ("model:m/lifetime/ever", "tenant:alice/lifetime/ever")
YEAR_S = 365 * 86400


def secret(name: str) -> AuditorSecret:
    return auditor_secret("x25519", SECRETS[name])


class Recorder:
    """Writes what one holder did, with figures that add up."""

    def __init__(self, log: SignedLog, holder: str) -> None:
        self.log, self.holder = log, holder
        self.lease = f"lease of {holder}"
        self.spent: Counter[str] = Counter()

    async def begin(self, bits: int = 10**9, *, witnesses: str = "") -> None:
        started = Started(
            at_ms=self.now(), holder=self.holder, version="1", policy="p", codes="c", boot_id="b", witnesses=witnesses
        )
        await self.put(started)
        each, fences = dict.fromkeys(ACCOUNTS, bits), dict.fromkeys(ACCOUNTS, 1)
        await self.put(LeaseGranted(at_ms=self.now(), lease=self.lease, holder=self.holder, bits=each, fences=fences))

    def now(self) -> int:
        return int(SystemClock().wall_s() * 1000)

    async def put(self, leaf, content: object = None) -> None:
        await self.log.append([Entry(leaf, content)])

    async def answer(self, name: str, *, text: str = "A piece. ", pieces: int = 4) -> None:
        opened = Opened(
            at_ms=self.now(),
            answer=name,
            holder=self.holder,
            accounts=ACCOUNTS,
            tenant="alice",
            model="m",
            route="/v1/chat/completions",
            seed=7,
            request_bytes=40,
        )
        entries = [Entry(opened, b'{"asked":"%s"}' % name.encode())]
        for number in range(pieces):
            last = number == pieces - 1
            release = Release(idle_ticks=0, quanta=1, text=text, ending=Ending(outcome=Outcome.STOP) if last else None)
            leaf = Released(
                at_ms=self.now(),
                answer=name,
                tick=number,
                idle_ticks=0,
                text_bytes=len(text),
                charged_bits=100,
                outcome="stop" if last else None,
            )
            entries.append(Entry(leaf, release))
            self.spent.update(dict.fromkeys(ACCOUNTS, 100))
        closed = Closed(
            at_ms=self.now(),
            answer=name,
            outcome="stop",
            parting_bits=0,
            text_bytes=pieces * len(text),
            charged_bits=100 * pieces,
            spent_bits=dict(self.spent),
        )
        settled = Settled(at_ms=self.now(), answer=name, code="zstd", charged_bits=100 * pieces - 30, refunded_bits=30)
        self.spent.subtract(dict.fromkeys(ACCOUNTS, 30))
        await self.log.append([*entries, Entry(closed), Entry(settled)])

    async def end(self) -> None:
        returned = dict.fromkeys(ACCOUNTS, 0)
        await self.put(LeaseClosed(at_ms=self.now(), lease=self.lease, holder=self.holder, returned=returned))
        await self.put(Stopped(at_ms=self.now(), holder=self.holder))


def opened(directory: Path, *, auditors: tuple[PublicKey, ...] = AUDITORS) -> SignedLog:
    rules = Audit(directory=str(directory), auditors=auditors)
    return SignedLog(rules, clock=SystemClock(), metrics=Metrics())


async def sign(log: SignedLog) -> bytes:
    """What is there is signed; the checkpoint, as somebody who looks in copies it."""
    await log._notary.sign()
    return (log._directory / "tree" / "checkpoint").read_bytes()


class Recorded:
    """A log of thousands of leaves in several segments, signed many times; and what an auditor has kept of it.

    `verifier` is the key of the first day. With `rekeyed_at`, another one follows after so many answers, and a third is prepared.
    """

    def __init__(self, directory: Path, *, answers: int = 700, visits: int = 4, rekeyed_at: int | None = None) -> None:
        self.directory = directory
        self.kept: list[OldCheckpoint] = []
        self.seeds: list[bytes] = []  # of the log's keys, as a thief may have kept them
        asyncio.run(self._record(answers, visits, rekeyed_at))

    async def _record(self, answers: int, visits: int, rekeyed_at: int | None) -> None:
        usual, segments.SEGMENT_BYTES_MAX = segments.SEGMENT_BYTES_MAX, 256 * 1024
        try:
            log = opened(self.directory)
            self.verifier = log.verifier
            self._keep_key()
            recorder = Recorder(log, "h1")
            await recorder.begin()
            for number in range(answers):
                if number == rekeyed_at:
                    await log.rekey()
                    self._keep_key()
                await recorder.answer(f"answer-{number}", text=os.urandom(9).hex())
                if number % (answers // visits) == 5:
                    self.kept.append(OldCheckpoint(name=f"kept-{len(self.kept)}", data=await sign(log)))
            await recorder.end()
            self.last_verifier = log.verifier
            await log.close()
            if rekeyed_at is not None:
                prepare(self.directory, origin=log.origin)
        finally:
            segments.SEGMENT_BYTES_MAX = usual

    def _keep_key(self) -> None:
        self.seeds.append(Signer.parse((self.directory / "log.key").read_text().strip()).seed)

    def copy(self, directory: Path) -> Path:
        shutil.copytree(self.directory, directory)
        return directory


def verified(
    directory: Path, *, verifier: Verifier | None, since=(), kept_s: int | None = None, quorum: Quorum | None = None
) -> Verification:
    """As an auditor of next year sees it."""
    now_s = SystemClock().wall_s() + YEAR_S
    return Verification(directory, verifier=verifier, since=since, content_kept_s=kept_s, now_s=now_s, quorum=quorum)
