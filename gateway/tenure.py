"""Whether anything may leave this gateway now: the licence file, watched, and the memory of what was in force before.

A process looks at the file every second, and asks the time whenever a request is admitted and at the moment of the licence's
end. What the file says counts; the exceptions keep a renewal from being felt:

- A licence in force stays so while the file holds one that is not for now: one for another policy, which is about to be
  taken, or one that begins later.
- Any other trouble with the file (it is gone, cut, not signed enough) counts when two looks in a row find the same:
  a file that is being written is not a revocation.

The memory is a small file in the audit directory. A new version is durable in it before it is used, so that no crash revives
the version before; the time is written every few seconds while a licence is in force, so that a clock that is set back finds
at most so much of it again. Several processes share it under a lock. Whoever owns the gateway's host may delete it:
the audit log has every licence as well.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from gateway.authority import (
    AMENDMENT_BYTES_MAX,
    ENVELOPE_BYTES_MAX,
    Cause,
    Denied,
    Licence,
    Memory,
    amended,
    fresh,
    objection,
    read,
    read_amendment,
    time_text,
    timely,
)
from gateway.metrics import Metrics
from gateway.ports import Clock
from gateway.record import Leaf, LicenceAmended, LicenceInstalled, LicenceLapsed
from policy.refusal import Reason, Refused
from policy.rules import LicenceRule, Policy

LOOK_S = 1.0  # how soon a renewal is seen, and a clock that jumps ahead
REMEMBER_S = 10.0  # what of a licence's life a clock that is set back can give again, at each restart
MEMORY_FILE = "licence-seen.json"
MEMORY_BYTES_MAX = 4096

_UNSEEN = Denied(cause=Cause.MISSING, detail="nobody has looked for it yet")
_LATER = frozenset({Cause.OTHER_POLICY, Cause.NOT_YET_VALID})


class Unforgetting:
    """The memory file. Every method may raise `OSError` or `msgspec.MsgspecError`: then nothing may be relied on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / MEMORY_FILE

    def recall(self) -> Memory:
        """What is remembered; nothing before the first time."""
        try:
            with self.path.open("rb") as file:
                return msgspec.json.decode(file.read(MEMORY_BYTES_MAX), type=Memory)
        except FileNotFoundError:
            return Memory()

    def remember(self, memory: Memory) -> Memory:
        """On return all of it is durable, beside what other processes remember. Returns both together."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)  # let go of when it is closed
            before = self.recall()
            after = before.joined(memory)
            if after != before:
                self._write(after)
                os.fsync(directory)
            return after
        finally:
            os.close(directory)

    def _write(self, memory: Memory) -> None:
        # Under the lock there is one writer. A crash before the rename leaves the old memory, and the new one is not yet used.
        draft = self.path.with_suffix(".new")
        with draft.open("wb") as file:
            file.write(msgspec.json.encode(memory))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)


class Tenure:
    """One process's view. Without a rule in the policy everything is permitted, and nothing is watched."""

    def __init__(
        self,
        policy: Policy,
        *,
        clock: Clock,
        metrics: Metrics,
        changed: Callable[[Leaf], Awaitable[None]],
        log: Callable[..., None],
    ) -> None:
        self._rule: LicenceRule | None = policy.licence
        self._policy = policy
        self._amended: tuple[bytes, str, str, Denied | None] | None = None  # what was found of which amendment
        self._told: str | None = None  # the policy that an amendment was last told of
        self._unforgetting = Unforgetting(Path(policy.audit.directory))
        self._clock = clock
        self._metrics = metrics
        self._changed = changed  # told of every change, once egress is permitted or refused accordingly
        self._log = log
        self._standing: Licence | Denied = _UNSEEN
        self._suspect: Denied | None = None  # what the last look found against the file
        self._latest_s, self._latest_at_s = 0.0, clock.monotonic_s()
        self._remembered_s = -math.inf

    @property
    def refused(self) -> Refused | None:
        """Why nothing may leave; None if it may. Cheap: every request asks."""
        denied = self.denied
        if denied is None:
            return None
        message = "This gateway's operating licence is not in force, so nothing may leave."
        return Refused(reason=Reason.UNLICENSED, message=message, retry_after_s=5)

    @property
    def denied(self) -> Denied | None:
        """The same for the operator."""
        if self._rule is None:
            return None
        if isinstance(self._standing, Denied):
            return self._standing
        return timely(self._standing, wall_s=self._clock.wall_s(), latest_s=self._now_s())

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await asyncio.sleep(self._pause_s())
            await self.look()

    async def look(self) -> None:
        """Look at the file and at the time, and tell of what changed."""
        if self._rule is None:
            self._metrics.licence_ok.set(1)
            self._metrics.licence_expires.set(math.inf)
            return
        found = await self.examine(self._policy)
        held = self._standing if isinstance(self._standing, Licence) and self.denied is None else None
        suspect, self._suspect = self._suspect, found if isinstance(found, Denied) else None
        if (
            held is not None
            and isinstance(found, Denied)
            and (found.cause in _LATER or suspect is None or suspect.cause is not found.cause)
        ):
            found = held
        await self._stand(found)

    async def examine(self, policy: Policy) -> Licence | Denied:
        """What the file is worth under this policy. If it is good, it is remembered when this returns."""
        assert self._rule is not None
        try:
            found, memory = await asyncio.to_thread(self._examine, self._rule, policy)
        except (OSError, msgspec.MsgspecError) as fault:
            detail = f"{self._unforgetting.path}: {fault}"
            return Denied(cause=Cause.NOT_REMEMBERED, detail=detail)
        self._see(memory.latest_s)
        return found

    async def take(self, policy: Policy) -> None:
        """From here on this policy is in force, and a licence for any other is not."""
        if self._rule is None:
            return
        found = await self.examine(policy)
        self._policy = policy
        await self._stand(found)

    def _examine(self, rule: LicenceRule, policy: Policy) -> tuple[Licence | Denied, Memory]:
        memory = self._unforgetting.recall()
        licence = in_file(Path(rule.file))
        if isinstance(licence, Denied):
            return licence, memory
        wall_s, latest_s = self._clock.wall_s(), self._now_s()
        covered = licence.terms.policy if self._is_amended(licence, policy, rule) else policy.digest
        denied = objection(licence, rule=rule, policy=covered, memory=memory, wall_s=wall_s, latest_s=latest_s)
        if denied is not None:
            return denied, memory
        now_s = max(wall_s, latest_s, memory.latest_s)
        if licence.terms.version > memory.version or self._clock.monotonic_s() - self._remembered_s >= REMEMBER_S:
            # A crash before this line: the licence was never used. After it: nothing older is ever used again.
            memory = self._unforgetting.remember(memory.with_licence(licence).at(now_s, licence))
            self._remembered_s = self._clock.monotonic_s()
            return fresh(licence, memory) or licence, memory  # another process may have been quicker with a newer one
        return licence, memory

    def _is_amended(self, licence: Licence, policy: Policy, rule: LicenceRule) -> bool:
        """Whether an amendment beside the file carries the licence over to this policy. Looked into once: it is slow."""
        if licence.terms.policy == policy.digest:
            return False
        data = amendment_data(rule)
        if data is None:
            return False
        case = (data, licence.terms.policy, policy.digest)
        if self._amended is None or self._amended[:3] != case:
            amendment = read_amendment(data)
            found = amendment if isinstance(amendment, Denied) else amended(amendment, licence, policy, rule)
            if found is not None:
                self._log("the amendment does not hold", cause=found.cause.value, detail=found.detail)
            self._amended = (*case, found)
        return self._amended[3] is None

    async def _tell_amendment(self, licence: Licence, rule: LicenceRule, *, at_ms: int) -> None:
        digest = self._policy.digest
        if digest in (licence.terms.policy, self._told) or self._amended is None:
            return
        amendment = read_amendment(self._amended[0])
        assert not isinstance(amendment, Denied), "it was read before"
        self._told = digest
        signers = tuple(key.name for key in amendment.signers(rule.keys))
        await self._changed(LicenceAmended(at_ms=at_ms, policy=digest, signers=signers))

    async def _stand(self, found: Licence | Denied) -> None:
        before, self._standing = self._standing, found
        for licence in (before, found):
            if isinstance(
                licence, Licence
            ):  # no further than its end: a clock that ran ahead must not outlive the next one
                self._see(min(self._clock.wall_s(), licence.terms.expires))
        self._metrics.licence_ok.set(isinstance(found, Licence))
        if isinstance(found, Licence):
            self._metrics.licence_expires.set(found.terms.expires)
        if isinstance(before, Licence) and isinstance(found, Denied):
            await self._remember_end(before)
        at_ms = int(self._clock.wall_s() * 1000)
        if isinstance(found, Licence):
            assert self._rule is not None
            await self._tell_amendment(found, self._rule, at_ms=at_ms)
            if not isinstance(before, Licence) or before.digest != found.digest:
                signers = tuple(key.name for key in found.signers(self._rule.keys))
                self._log("licence in force", version=found.terms.version, expires=time_text(found.terms.expires))
                await self._changed(_installed(found, signers=signers, at_ms=at_ms))
        elif not isinstance(before, Denied) or before.cause is not found.cause or before is _UNSEEN:
            self._log("no licence in force: nothing may leave", cause=found.cause.value, detail=found.detail)
            await self._changed(LicenceLapsed(at_ms=at_ms, cause=found.cause.value))

    async def _remember_end(self, licence: Licence) -> None:
        """A licence that has ended stays so, whatever the clock says later."""
        try:
            memory = Memory().at(self._now_s(), licence)
            await asyncio.to_thread(self._unforgetting.remember, memory)
        except (OSError, msgspec.MsgspecError) as fault:
            self._log("the licence's end cannot be remembered", error=str(fault))

    def _now_s(self) -> float:
        """The latest time that this process has seen, and what has passed since."""
        return self._latest_s + self._clock.monotonic_s() - self._latest_at_s

    def _see(self, at_s: float) -> None:
        """It is this time at least."""
        self._latest_s, self._latest_at_s = max(self._now_s(), at_s), self._clock.monotonic_s()

    def _pause_s(self) -> float:
        """Until the next look: a second, or the licence's end."""
        if isinstance(self._standing, Denied):
            return LOOK_S
        left_s = self._standing.terms.expires - max(self._now_s(), self._clock.wall_s())
        return min(max(left_s, 0.0), LOOK_S)


def amendment_path(rule: LicenceRule) -> Path:
    """Where an amendment lies: beside the licence."""
    return Path(f"{rule.file}.amendment")


def amendment_data(rule: LicenceRule) -> bytes | None:
    """What lies there; None if nothing does that can be read."""
    try:
        with amendment_path(rule).open("rb") as file:
            return file.read(AMENDMENT_BYTES_MAX + 1)
    except OSError:
        return None


def covered(licence: Licence, policy: Policy, rule: LicenceRule) -> str:
    """The digest of the policy that the licence must name: an amendment beside it may stand between the two."""
    data = amendment_data(rule)
    amendment = read_amendment(data) if data is not None else None
    if (
        amendment is not None
        and not isinstance(amendment, Denied)
        and amended(amendment, licence, policy, rule) is None
    ):
        return licence.terms.policy
    return policy.digest


def in_file(path: Path) -> Licence | Denied:
    """What a licence file holds, as far as it can be read; whether it holds here is not asked."""
    try:
        with path.open("rb") as file:
            data = file.read(ENVELOPE_BYTES_MAX + 1)
    except FileNotFoundError:
        return Denied(cause=Cause.MISSING, detail=f"there is no {path}")
    except OSError as fault:
        return Denied(cause=Cause.UNREADABLE, detail=f"{path}: {fault.strerror}")
    return read(data)


def _installed(licence: Licence, *, signers: tuple[str, ...], at_ms: int) -> LicenceInstalled:
    return LicenceInstalled(
        at_ms=at_ms,
        version=licence.terms.version,
        not_before_s=licence.terms.not_before,
        expires_s=licence.terms.expires,
        policy=licence.terms.policy,
        terms=licence.digest,
        signers=signers,
    )
