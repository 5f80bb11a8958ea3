"""Unix sockets: those that are known to lead out, those that lie about, and abstract ones. Connecting sends nothing."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gateway.doctor.finding import Finding, Verdict

# Who answers here starts containers, resolves names or carries text off the host, for whoever asks.
KNOWN = (
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/podman/podman.sock",
    "/run/buildkit/buildkitd.sock",
    "/var/lib/kubelet/pod-resources/kubelet.sock",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/nscd/socket",
    "/run/dbus/system_bus_socket",
    "/run/avahi-daemon/socket",
    "/run/systemd/journal/socket",
    "/run/systemd/private",
    "/dev/log",
    "/run/snapd.socket",
    "/run/libvirt/libvirt-sock",
    "/run/spire/sockets/agent.sock",
    "/run/tailscale/tailscaled.sock",
)
# Where others may have been left or mounted.
DIRECTORIES = ("/run", "/var", "/tmp", "/dev", "/srv", "/home", "/root", "/opt", "/mnt", "/media", "/sockets")  # noqa: S108
ENTRIES_MAX = 300_000  # of directories; a container's file system has fewer where sockets lie
STREAM = (socket.SOCK_STREAM,)
TYPES = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM)
_UNCONNECTED = "nobody listens"


def sockets_on_disk(
    directories: Sequence[str], known: Sequence[str], *, allowed: frozenset[str], limit_s: float
) -> list[Finding]:
    """Every socket below the directories, and the known ones, tried. Those that cannot be opened are summed up in one line."""
    paths, is_complete = _found(directories, time.monotonic() + limit_s)
    paths |= {os.path.realpath(path) for path in known if Path(path).exists()}
    where = " ".join(directories)
    findings = _tried(sorted(paths), allowed=allowed, limit_s=limit_s, address=lambda path: path, kind="unix socket")
    closed = len(paths) - len(findings)
    findings.append(_rest("unix socket", where, "looked for, and connected to", closed))
    if not is_complete:
        detail = f"more than {ENTRIES_MAX:,} entries or {limit_s:g} s: not all was looked at"
        findings.append(
            Finding(kind="unix socket", target=where, how="looked for", verdict=Verdict.UNTESTED, detail=detail)
        )
    return findings


def abstract(names: Sequence[tuple[str, int]], *, allowed: frozenset[str], limit_s: float) -> list[Finding]:
    """Abstract sockets of this network namespace, by name and type."""
    kinds = dict(names)
    findings = _tried(
        sorted(kinds), allowed=allowed, limit_s=limit_s, address=lambda name: f"\0{name}", kind="abstract socket",
        types=lambda name: (kinds[name],),
    )  # fmt: skip
    rest = _rest("abstract socket", "/proc/self/net/unix", "listed, and connected to", len(kinds) - len(findings))
    return [*findings, rest]


def connected(address: str, kinds: Sequence[int], limit_s: float) -> tuple[bool, str]:
    """Whether somebody takes a connection there, and who or why not."""
    reason = _UNCONNECTED
    for kind in kinds:
        with socket.socket(socket.AF_UNIX, kind) as connection:
            connection.settimeout(limit_s)
            try:
                connection.connect(address)
            except TimeoutError:
                return True, "somebody listens, whose queue is full"
            except OSError as fault:
                if fault.errno == errno.EAGAIN:
                    return True, "somebody listens, whose queue is full"
                if fault.errno != errno.EPROTOTYPE:
                    return False, fault.strerror or _UNCONNECTED
                continue
            return True, _peer(connection)
    return False, reason


def _tried(
    names: Sequence[str],
    *,
    allowed: frozenset[str],
    limit_s: float,
    address: Callable[[str], str],
    kind: str,
    types: Callable[[str], Sequence[int]] = lambda _: TYPES,
) -> list[Finding]:
    findings = []
    for name in names:
        how = "connected to"
        if name in allowed:
            detail = "allowed on the command line, not tried"
            findings.append(Finding(kind=kind, target=name, how="-", verdict=Verdict.UNTESTED, detail=detail))
            continue
        is_open, detail = connected(address(name), types(name), limit_s)
        if is_open:
            findings.append(Finding(kind=kind, target=name, how=how, verdict=Verdict.OPEN, detail=detail))
    return findings


def _rest(kind: str, where: str, how: str, closed: int) -> Finding:
    detail = f"{closed} that nobody listens on or that may not be opened" if closed else "no others"
    return Finding(kind=kind, target=where, how=how, verdict=Verdict.CLOSED, detail=detail)


def _found(directories: Sequence[str], deadline_s: float) -> tuple[set[str], bool]:
    paths: set[str] = set()
    for count, entry in enumerate(_entries([os.path.realpath(directory) for directory in directories])):
        if count >= ENTRIES_MAX or time.monotonic() > deadline_s:
            return paths, False
        try:
            if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
                paths.add(entry.path)
        except OSError:
            continue  # gone, or not ours to look at
    return paths, True


def _entries(directories: list[str]) -> Iterator[os.DirEntry[str]]:
    """Depth first, without following links; what may not be listed holds nothing that could be named."""
    while directories:
        directory = directories.pop()
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(entry.path)
                    else:
                        yield entry
        except OSError:
            continue


def _peer(connection: socket.socket) -> str:
    if connection.type == socket.SOCK_DGRAM:
        return "takes datagrams"
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    process, user, _ = struct.unpack("3i", credentials)
    who = f"process {process}" if process else "a process outside this container"
    return f"connected: {who} of user {user} listens"
