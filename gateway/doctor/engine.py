"""The engine's side: every way out that can be thought of, tried. None of them should lead anywhere."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from gateway.doctor import packets, surroundings, unix
from gateway.doctor.finding import Finding, Probe, Result, Verdict, examine
from gateway.doctor.surroundings import DefaultRoute
from gateway.doctor.targets import (
    HOPS,
    METADATA,
    METADATA_NAME,
    NEXT_HOP_PORTS,
    PUBLIC4,
    PUBLIC6,
    PUBLIC_NAME,
    RDMA,
    TCP_PORTS,
    UDP_PORTS,
    VSOCK_HOST,
    VSOCK_PORT,
    Allowed,
    Target,
)

FILES_S_MAX = 10.0  # for looking for sockets: a disk may be slower than a network


def engine_side(
    *,
    targets: Sequence[Target],
    only_targets: bool,
    allowed: Allowed,
    directories: Sequence[str],
    environment: Mapping[str, str],
    limit_s: float,
) -> list[Finding]:
    """All findings. With `only_targets` nothing else is tried but those and Unix sockets below `directories`."""
    network = [] if only_targets else list(_default_probes(environment))
    probes = [_probe(target) for target in targets] + network
    tried = [_unless_allowed(probe, allowed) for probe in probes]
    findings = examine(tried, limit_s=limit_s)
    known = () if only_targets or tuple(directories) != unix.DIRECTORIES else unix.KNOWN
    findings += unix.sockets_on_disk(directories, known, allowed=allowed.sockets, limit_s=FILES_S_MAX)
    if not only_targets:
        names = surroundings.abstract_sockets(_text("/proc/self/net/unix"))
        findings += unix.abstract(names, allowed=allowed.sockets, limit_s=limit_s)
    return findings


def _default_probes(environment: Mapping[str, str]) -> Iterator[Probe]:
    for address in (*PUBLIC4, *PUBLIC6):
        yield from (_tcp(address, port) for port in TCP_PORTS)
        yield from (_udp(address, port) for port in UDP_PORTS)
        yield _dns(address)
        yield _icmp(address)
    for address in (PUBLIC4[0], PUBLIC6[0]):
        yield from (_udp(address, UDP_PORTS[-1], hops=hops) for hops in HOPS)
    for server in surroundings.name_servers(_text("/etc/resolv.conf")):
        yield _dns(server, kind="dns, resolv.conf")
        yield _tcp(server, 53, kind="dns, resolv.conf")
    for name in (PUBLIC_NAME, METADATA_NAME):
        yield Probe(kind="dns, system", target=name, how="getaddrinfo", act=partial(packets.names, name))
    yield from (_tcp(address, 80, kind="metadata") for address in METADATA)
    yield from _proxies(environment)
    yield from _kubernetes(environment)
    yield from _routes("IPv4", list(surroundings.default_routes4(_text("/proc/self/net/route"))))
    yield from _routes("IPv6", list(surroundings.default_routes6(_text("/proc/self/net/ipv6_route"))))
    yield Probe(kind="rdma", target=RDMA, how="opened the devices", act=_rdma)
    yield Probe(kind="vsock", target=f"{VSOCK_HOST}:{VSOCK_PORT}", how="connected to the hypervisor", act=_vsock)


def _probe(target: Target) -> Probe:
    match target.kind:
        case "tcp":
            return _tcp(target.host, target.port)
        case "udp":
            return _udp(target.host, target.port)
        case "dns":
            return _dns(target.host)
        case "icmp":
            return _icmp(target.host)
    return Probe(kind="unix socket", target=target.host, how="connected to", act=partial(_unix, target.host))


def _version(address: str) -> int:
    return ip_address(address.partition("%")[0]).version


def _tcp(address: str, port: int, *, kind: str | None = None) -> Probe:
    return Probe(
        kind=kind or f"tcp, IPv{_version(address)}",
        target=f"[{address}]:{port}" if ":" in address else f"{address}:{port}",
        how="TCP connection",
        act=partial(packets.tcp, address, port),
        host=address,
        port=port,
    )


def _udp(address: str, port: int, *, hops: int | None = None) -> Probe:
    return Probe(
        kind=f"udp, IPv{_version(address)}",
        target=f"[{address}]:{port}" if ":" in address else f"{address}:{port}",
        how="empty datagram" if hops is None else f"empty datagram for {hops} hops",
        act=partial(packets.udp, address, port, hops=hops),
        host=address,
        port=port,
    )


def _dns(address: str, *, kind: str | None = None) -> Probe:
    kind = kind or f"dns, IPv{_version(address)}"
    how = "question for the root over UDP"
    return Probe(kind=kind, target=address, how=how, act=partial(packets.dns, address), host=address, port=53)


def _icmp(address: str) -> Probe:
    kind = f"icmp, IPv{_version(address)}"
    how = "empty echo request"
    return Probe(kind=kind, target=address, how=how, act=partial(packets.icmp, address), host=address)


def _proxies(environment: Mapping[str, str]) -> Iterator[Probe]:
    found = surroundings.proxies(environment)
    if not found:
        yield _known("proxy", "environment", "read", (Verdict.CLOSED, "no proxy is set"))
    for variable, host, port in found:
        act = partial(packets.named_tcp, host, port)
        place = f"{variable}: {host}:{port}"
        yield Probe(kind="proxy", target=place, how="TCP connection", act=act, host=host, port=port)


def _kubernetes(environment: Mapping[str, str]) -> Iterator[Probe]:
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if host and port.isdigit():
        act = partial(packets.named_tcp, host, int(port))
        place = f"{host}:{port}"
        yield Probe(kind="kubernetes", target=place, how="TCP connection", act=act, host=host, port=int(port))


def _routes(kind: str, routes: Sequence[DefaultRoute]) -> Iterator[Probe]:
    kind = f"route, {kind}"
    if not routes:
        yield _known(kind, "default route", "read", (Verdict.CLOSED, "there is none"))
    for route in routes:
        hop = route.next_hop or "its link"
        detail = f"by {hop} on {route.device}: whether anything passes is for the other attempts to say"
        yield _known(kind, "default route", "read", (Verdict.UNTESTED, detail))
        if route.next_hop is not None and "%" not in route.next_hop:
            yield from (_tcp(route.next_hop, port, kind="next hop") for port in NEXT_HOP_PORTS)
            yield _dns(route.next_hop, kind="next hop")


def _known(kind: str, target: str, how: str, result: Result) -> Probe:
    act: Callable[[float], Result] = lambda _: result  # noqa: E731
    return Probe(kind=kind, target=target, how=how, act=act)


def _unless_allowed(probe: Probe, allowed: Allowed) -> Probe:
    if not probe.host or not allowed.covers(probe.host, probe.port):
        return probe
    return _known(probe.kind, probe.target, "-", (Verdict.UNTESTED, "allowed on the command line, not tried"))


def _unix(path: str, limit_s: float) -> Result:
    is_open, detail = unix.connected(path, unix.TYPES, limit_s)
    return (Verdict.OPEN if is_open else Verdict.CLOSED), detail


def _rdma(_: float) -> Result:
    """Cards that write into other hosts' memory pass every packet filter by."""
    try:
        devices = sorted(Path(RDMA).iterdir())
    except OSError:
        return Verdict.CLOSED, "there are none"
    usable = [device.name for device in devices if os.access(device, os.R_OK | os.W_OK)]
    if usable:
        return Verdict.OPEN, f"may be used: {', '.join(usable)}"
    return Verdict.CLOSED, "may not be used"


def _vsock(limit_s: float) -> Result:
    try:
        connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError:
        return Verdict.CLOSED, "no such sockets here"
    with connection:
        connection.settimeout(limit_s)
        error = connection.connect_ex((VSOCK_HOST, VSOCK_PORT))
    if error == 0:
        return Verdict.OPEN, "the hypervisor answered"
    if error == errno.ECONNRESET:
        return (
            Verdict.UNTESTED,
            "the hypervisor can be asked and has nobody on this port; forbid the address family vsock",
        )
    return Verdict.CLOSED, os.strerror(error)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
