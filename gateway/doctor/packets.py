"""Attempts over IP: a TCP connection, an empty datagram, a DNS question, an echo request. Each asks for an answer and no more."""

from __future__ import annotations

import errno
import select
import socket
import struct
import subprocess
import sys
import time
from dataclasses import replace
from ipaddress import ip_address

from gateway.doctor.finding import Result, Verdict
from gateway.doctor.judgement import Attempt, IcmpError, judged

# linux/in.h, linux/in6.h, linux/errqueue.h: Python's socket module does not name all of them.
IP_RECVERR, IPV6_RECVERR = 11, 25
ORIGIN_ICMP, ORIGIN_ICMP6 = 2, 3
_EXTENDED_ERROR = struct.Struct("=IBBBBII")

# A question for the root's name servers: as short as they come, and the same each time.
DNS_QUESTION = bytes.fromhex("5745010000010000000000000000020001")
DNS_REFUSALS = frozenset({2, 5})  # SERVFAIL, REFUSED: a resolver on loopback that asks nobody says so
ANSWER_BYTES_MAX = 4096
_ECHO_REQUEST = {socket.AF_INET: 8, socket.AF_INET6: 128}
_ICMP = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}
_RESOLVER_PROGRAM = "import socket, sys; socket.getaddrinfo(sys.argv[1], 80)"
CONNECTED = "connected"
_TRY_AGAIN, _NO_SUCH_NAME, _NO_ADDRESS = "-3", "-2", "-5"  # netdb.h


def tcp(address: str, port: int, limit_s: float) -> Result:
    """A connection, closed at once."""
    attempt = _connected(address, port, limit_s)
    return judged(attempt) if not attempt.answered else (Verdict.OPEN, CONNECTED)


def udp(address: str, port: int, limit_s: float, *, hops: int | None = None) -> Result:
    """An empty datagram. With `hops`, its time is up after so many: routers say so where targets are silent."""
    return judged(_exchanged(address, port, b"", limit_s, hops=hops, answers_expected=False))


def dns(address: str, limit_s: float) -> Result:
    """A question to a name server, over UDP."""
    answer: list[bytes] = []
    attempt = _exchanged(address, 53, DNS_QUESTION, limit_s, answer=answer)
    if answer and ip_address(address).is_loopback and len(answer[0]) >= 4 and answer[0][3] & 15 in DNS_REFUSALS:
        return Verdict.CLOSED, "a name server on this host answers, and asks nobody"
    return judged(attempt)


def icmp(address: str, limit_s: float) -> Result:
    """An echo request without data. Without the right to send one it says so."""
    family = _family(address)
    try:
        connection = socket.socket(family, socket.SOCK_DGRAM, _ICMP[family])
    except OSError as fault:
        if fault.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT):
            return judged(Attempt(target=address, source=None, limit_s=limit_s, error=fault.errno))
        return Verdict.UNTESTED, f"{fault.strerror}: the group is not in net.ipv4.ping_group_range"
    with connection:
        # The kernel fills in identifier and checksum of a datagram socket.
        request = struct.pack("!BBHHH", _ECHO_REQUEST[family], 0, 0, 0, 1)
        return judged(_asked(connection, address, 0, request, limit_s))


def names(name: str, limit_s: float) -> Result:
    """The system's own resolver, whatever it asks: name servers, nscd, systemd-resolved. In a process, which can be ended."""
    command = [sys.executable, "-I", "-S", "-c", _RESOLVER_PROGRAM, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)  # noqa: S603
    except subprocess.TimeoutExpired:
        return Verdict.CLOSED, f"no answer in {limit_s:g} s"
    if done.returncode == 0:
        return Verdict.OPEN, "resolved"
    said = done.stderr.strip().rpartition("\n")[2]
    if f"[Errno {_NO_ADDRESS}]" in said:
        return Verdict.OPEN, "a name server answered that there is no address"
    if f"[Errno {_NO_SUCH_NAME}]" in said:
        return Verdict.UNTESTED, "no such name: said by a name server, or nobody was asked"
    if f"[Errno {_TRY_AGAIN}]" in said:
        return Verdict.CLOSED, "no name server answered"
    return Verdict.UNTESTED, said.rpartition("] ")[2] or "the resolver failed"


def named_tcp(host: str, port: int, limit_s: float) -> Result:
    """As `tcp`, to a host that may have a name."""
    address = address_of(host)
    if address is None:
        return Verdict.CLOSED, f"{host} cannot be resolved"
    return tcp(address, port, limit_s)


def address_of(host: str) -> str | None:
    """The first address of a host; None if it has none. May wait for name servers as long as the system does."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None


def source(address: str) -> str | None:
    """Which address of this host would talk to that one; None if none can. Sends nothing."""
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as connection:
            connection.connect((address, 9))
            name: str = connection.getsockname()[0]
            return name
    except OSError:
        return None


def _connected(address: str, port: int, limit_s: float) -> Attempt:
    attempt = Attempt(target=address, source=source(address), limit_s=limit_s)
    try:
        connection = socket.socket(_family(address), socket.SOCK_STREAM)
    except OSError as fault:
        return replace(attempt, error=fault.errno)
    with connection:
        _want_errors(connection)
        connection.setblocking(False)
        error = connection.connect_ex((address, port))
        if error != errno.EINPROGRESS:
            return replace(attempt, answered=error == 0, error=error or None)
        # Writable means connected, or failed.
        is_decided = bool(select.select([], [connection], [], limit_s)[1])
        found = _icmp_error(connection)
        error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        is_connected = is_decided and error == 0
        return replace(attempt, answered=is_connected, error=error or None, icmp=None if is_connected else found)


def _exchanged(
    address: str,
    port: int,
    data: bytes,
    limit_s: float,
    *,
    hops: int | None = None,
    answers_expected: bool = True,
    answer: list[bytes] | None = None,
) -> Attempt:
    try:
        connection = socket.socket(_family(address), socket.SOCK_DGRAM)
    except OSError as fault:
        return Attempt(target=address, source=None, limit_s=limit_s, error=fault.errno)
    with connection:
        if hops is not None:
            _limit_hops(connection, hops)
        return _asked(connection, address, port, data, limit_s, answers_expected=answers_expected, answer=answer)


def _asked(
    connection: socket.socket,
    address: str,
    port: int,
    data: bytes,
    limit_s: float,
    *,
    answers_expected: bool = True,
    answer: list[bytes] | None = None,
) -> Attempt:
    """Send once, and wait for a datagram, which goes to `answer`, or for an error about ours."""
    attempt = Attempt(target=address, source=source(address), limit_s=limit_s, answers_expected=answers_expected)
    deadline_s = time.monotonic() + limit_s
    _want_errors(connection)
    connection.setblocking(False)
    try:
        connection.connect((address, port))
        connection.send(data)
        while (left_s := deadline_s - time.monotonic()) > 0:
            if not select.select([connection], [], [], left_s)[0]:
                break
            if found := _icmp_error(connection):
                return replace(attempt, icmp=found)
            try:
                received = connection.recv(ANSWER_BYTES_MAX)
            except BlockingIOError:
                continue
            if answer is not None:
                answer.append(received)
            return replace(attempt, answered=True)
    except OSError as fault:
        return replace(attempt, error=fault.errno, icmp=_icmp_error(connection))
    return attempt


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET


def _want_errors(connection: socket.socket) -> None:
    if connection.family == socket.AF_INET6:
        connection.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    else:
        connection.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)


def _limit_hops(connection: socket.socket, hops: int) -> None:
    if connection.family == socket.AF_INET6:
        connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
    else:
        connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)


def _icmp_error(connection: socket.socket) -> IcmpError | None:
    """The ICMP error that waits in the socket's error queue, if one does."""
    try:
        _, ancillary, _, _ = connection.recvmsg(64, 512, socket.MSG_ERRQUEUE)
    except OSError:
        return None
    for level, kind, data in ancillary:
        if (level, kind) not in ((socket.IPPROTO_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR)):
            continue
        _, origin, icmp_type, code, _, _, _ = _EXTENDED_ERROR.unpack_from(data)
        offender = data[_EXTENDED_ERROR.size :]  # a socket address; its place is the same in all versions
        if origin == ORIGIN_ICMP and len(offender) >= 8:
            return IcmpError(version=4, sender=str(ip_address(offender[4:8])), type=icmp_type, code=code)
        if origin == ORIGIN_ICMP6 and len(offender) >= 24:
            return IcmpError(version=6, sender=str(ip_address(offender[8:24])), type=icmp_type, code=code)
    return None
