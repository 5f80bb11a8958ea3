"""What the gateway stands on: the clock, the disks under ledger and audit log, the ledger, the licence. Reads only."""

from __future__ import annotations

import ctypes
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from gateway.authority import Denied, objection, time_text
from gateway.doctor import packets
from gateway.doctor.finding import Probe, Result, Verdict
from gateway.tenure import Unforgetting, covered, in_file
from policy.rules import LicenceRule, MemoryLedger, Policy, PostgresLedger, SqliteLedger

FREE_BYTES_MIN = 1024**3  # an audit log that fills its disk ends the gateway; a busy one writes this in hours
FUTURE_S_MAX = 60.0  # a file that was written so much later than now: the clock has been set back
VOLATILE = frozenset({"tmpfs", "ramfs", "overlay", "aufs"})  # gone with the machine, or with the container
REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs"}
)  # SQLite's WAL is no good there
POSTGRES_PORT = 5432
_STA_UNSYNC = 0x40  # linux/timex.h
_TIME_ERROR = 5


def footing(policy: Policy) -> Iterator[Probe]:
    """All of it, for one policy."""
    audit = Path(policy.audit.directory)
    yield Probe(kind="clock", target="kernel", how="asked whether it is corrected", act=lambda _: _clock())
    yield Probe(kind="clock", target=str(audit), how="compared with files", act=lambda _: _clock_against(audit))
    yield Probe(kind="disk", target=str(audit), how="file system, space, rights", act=lambda _: _directory(audit))
    match policy.ledger:
        case SqliteLedger(path=path):
            yield Probe(kind="ledger", target=path, how="file system and rights", act=lambda _: _sqlite(Path(path)))
        case PostgresLedger(url=url):
            for host, port in servers(url):
                act = partial(_server, host, port)
                yield Probe(kind="ledger", target=f"{host}:{port}", how="TCP connection", act=act)
        case MemoryLedger():
            forgets = (Verdict.WRONG, "forgets what was spent when the process ends")
            yield Probe(kind="ledger", target="memory", how="read the policy", act=lambda _: forgets)
    rule = policy.licence
    if rule is not None:
        yield Probe(
            kind="licence", target=rule.file, how="judged as the gateway does", act=lambda _: _licence(policy, rule)
        )
    yield Probe(kind="user", target=str(os.geteuid()), how="asked", act=lambda _: _user())


class _Timex(ctypes.Structure):
    """struct timex of linux/timex.h, as far as `status`."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def _clock() -> Result:
    reading = _Timex()  # modes 0 changes nothing
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(reading))
    if state < 0:
        return Verdict.UNTESTED, os.strerror(ctypes.get_errno())
    if state == _TIME_ERROR or reading.status & _STA_UNSYNC:
        return Verdict.UNTESTED, "nobody tells the kernel that it is right: run NTP, or know who else sets it"
    return Verdict.RIGHT, f"synchronised, within {reading.maxerror / 1000:.0f} ms"


def _clock_against(directory: Path) -> Result:
    try:
        newest_s = max((entry.stat().st_mtime for entry in directory.rglob("*") if entry.is_file()), default=0.0)
    except OSError as fault:
        return Verdict.UNTESTED, fault.strerror or str(fault)
    if newest_s - time.time() > FUTURE_S_MAX:
        return Verdict.WRONG, f"a file was written at {time_text(newest_s)}, which is later than now"
    return Verdict.RIGHT, "no file is from the future"


def _directory(directory: Path) -> Result:
    if not directory.is_dir():
        parent = directory.parent
        if parent.is_dir() and os.access(parent, os.W_OK):
            return Verdict.UNTESTED, "not there yet; the gateway makes it"
        return Verdict.WRONG, "not there, and cannot be made"
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        return Verdict.WRONG, "may not be written by this user"
    if directory.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        return Verdict.WRONG, "others may look into it or write there; chmod 700"
    kind = file_system(_mounts(), str(directory.resolve()))
    if kind in VOLATILE:
        return Verdict.WRONG, f"{kind}: gone with the machine or the container"
    system = os.statvfs(directory)
    free = system.f_bavail * system.f_frsize
    if free < FREE_BYTES_MIN:
        return Verdict.WRONG, f"{free / 1e9:.2f} GB free: when it is full the gateway ends"
    return Verdict.RIGHT, f"{kind}, {free / 1e9:,.1f} GB free"


def _sqlite(path: Path) -> Result:
    place = path if path.exists() else path.parent
    if not place.exists():
        return Verdict.UNTESTED, "not there yet"
    if not os.access(path.parent, os.W_OK) or not os.access(place, os.R_OK | os.W_OK):
        return Verdict.WRONG, "may not be written by this user"
    if path.exists() and path.stat().st_mode & stat.S_IWOTH:
        return Verdict.WRONG, "everybody may write it"
    kind = file_system(_mounts(), str(place.resolve()))
    if kind in VOLATILE:
        return Verdict.WRONG, f"{kind}: gone with the machine or the container"
    if kind in REMOTE:
        return Verdict.WRONG, f"{kind}: SQLite's locks and shared memory do not hold there; use PostgreSQL"
    size = f"{path.stat().st_size:,} bytes" if path.exists() else "not there yet"
    return Verdict.RIGHT, f"{kind}, {size}"


def _server(host: str, port: int, limit_s: float) -> Result:
    if host.startswith("/"):
        is_there = Path(host, f".s.PGSQL.{port}").exists()
        return (Verdict.RIGHT, "the socket is there") if is_there else (Verdict.WRONG, "there is no such socket")
    verdict, detail = packets.named_tcp(host, port, limit_s)
    return (Verdict.RIGHT if verdict is Verdict.OPEN else Verdict.WRONG), detail


def _licence(policy: Policy, rule: LicenceRule) -> Result:
    licence = in_file(Path(rule.file))
    if isinstance(licence, Denied):
        return Verdict.WRONG, f"{licence.cause.value}: {licence.detail}"
    try:
        memory = Unforgetting(Path(policy.audit.directory)).recall()
    except ValueError as fault:  # msgspec's
        return Verdict.WRONG, f"what was in force before cannot be read: {fault}"
    now_s = time.time()
    names = covered(licence, policy, rule)
    denied = objection(licence, rule=rule, policy=names, memory=memory, wall_s=now_s, latest_s=memory.latest_s)
    if denied is not None:
        return Verdict.WRONG, f"{denied.cause.value}: {denied.detail}"
    left_h = (licence.terms.expires - now_s) / 3600
    return Verdict.RIGHT, f"version {licence.terms.version}, in force for {left_h:.1f} h more"


def _user() -> Result:
    if os.geteuid() == 0:
        return Verdict.UNTESTED, "this is root; if the gateway is too, give it a user of its own"
    return Verdict.RIGHT, "not root"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """Where a file system is, and of which kind."""

    point: str
    kind: str


def mounts(table: str) -> list[Mount]:
    """From /proc/self/mountinfo (proc(5)): the point is the fifth word, the kind stands after the hyphen."""
    found = []
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        if after:
            found.append(Mount(point=before.split()[4].replace("\\040", " "), kind=after.split()[0]))
    return found


def file_system(mounted: list[Mount], path: str) -> str:
    """The kind of the file system that holds a path: the last of the deepest mounts above it."""
    deepest = Mount(point="", kind="unknown")
    for mount in mounted:
        is_above = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if is_above and len(mount.point) >= len(deepest.point):
            deepest = mount
    return deepest.kind


def servers(url: str) -> list[tuple[str, int]]:
    """Hosts and ports of a PostgreSQL URL, which may name several."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    query = dict(word.partition("=")[::2] for word in parts.query.split("&") if word)
    found = []
    for word in (place or query.get("host", "")).split(","):
        host, colon, port = word.rpartition(":")
        if not colon or word.endswith("]"):
            host, port = word, ""
        found.append((host.strip("[]").replace("%2F", "/"), int(port) if port.isdigit() else POSTGRES_PORT))
    return found


def _mounts() -> list[Mount]:
    return mounts(Path("/proc/self/mountinfo").read_text())
