"""What a gateway of one process and a keeper of many stand on alike: the past, the codes, the licence, the witnesses."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from importlib.metadata import version
from pathlib import Path

from gateway import log
from gateway.audit.cosignatures import Cosignatures
from gateway.audit.log import SignedLog
from gateway.audit.note import Checkpoint
from gateway.authority import Denied
from gateway.config import Config, ConfigError
from gateway.host.process import CannotServe
from gateway.meters.zstd import ZstdMeter
from gateway.metrics import Metrics
from gateway.ports import AuditLog, Clock, Ledger, Meter
from gateway.recovery import recover
from gateway.serving import Serving
from gateway.tenure import Tenure
from policy.rules import Policy


def accounts_in_use(serving: Serving, clock: Clock) -> Collection[str]:
    """The ids of all accounts that a request could touch now."""
    return {account.id for account in serving.accounts.all(now_s=clock.wall_s())}


async def settle_past(*, ledger: Ledger, audit: AuditLog, clock: Clock, holders: Collection[str] | None = None) -> None:
    """What these holders (or all of this log) left behind when they crashed goes back, as far as the log proves it."""
    recovery = await recover(ledger=ledger, audit=audit, clock=clock, holders=holders)
    if recovery.returned_bits:
        log.event("recovered", returned_bits=dict(recovery.returned_bits))
    for holder in recovery.stale:
        log.problem(
            "this audit log is older than what the ledger heard from its holder; nothing is returned", holder=holder
        )


def meters_of(policy: Policy) -> Sequence[Meter]:
    """The codes that settle an answer in this process."""
    if "zstd" not in policy.meters:
        return []
    return [ZstdMeter(Path(policy.dictionary).read_bytes() if policy.dictionary is not None else None)]


def codes_digest(policy: Policy, meters: Sequence[Meter]) -> str:
    """Names the code set: which codes, and the data they depend on. Two digests alike charge alike."""
    scorer = policy.scorer.code or "" if policy.scorer is not None else ""
    parts = [*policy.meters, *(meter.digest for meter in meters), scorer, version("weir")]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def log_root(signed: SignedLog | None) -> str:
    """The root hash of the newest checkpoint, hex; empty before the first, and where another process keeps the log."""
    if signed is None or signed.note is None:
        return ""
    return Checkpoint.parse(signed.note.text).root.hex()


async def licensed(tenure: Tenure, policy: Policy) -> None:
    """Raises `ConfigError` if the installed licence does not permit what this policy permits."""
    if policy.licence is None:
        return
    found = await tenure.examine(policy)
    if isinstance(found, Denied):
        raise ConfigError(f"the licence in {policy.licence.file} does not hold for this policy: {found.detail}")


def cosignatures(config: Config, *, audit: SignedLog, clock: Clock, metrics: Metrics) -> Cosignatures | None:
    """Who asks this log's witnesses, if the policy names any. Raises `CannotServe` if they are another log's."""
    if config.quorum is None:
        return None
    try:
        return Cosignatures(
            config.policy.audit, config.quorum, audit=audit, clock=clock, metrics=metrics, log=log.problem
        )
    except ValueError as mistake:
        raise CannotServe(str(mistake)) from mistake


def unchangeable(before: Policy, after: Policy) -> list[str]:
    """What a reload cannot change, because open answers or files depend on it."""
    names = ("listen", "admin", "release", "meters", "dictionary", "scorer", "audit", "licence", "ledger")
    return [name for name in names if getattr(before, name) != getattr(after, name)]
