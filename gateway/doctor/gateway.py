"""The gateway's side: the backends are where the policy says and nowhere else, and engines cannot reach the admin port."""

from __future__ import annotations

import http.client
import stat
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from gateway.doctor import packets, surroundings, unix
from gateway.doctor.finding import Finding, Probe, Result, Verdict, examine
from gateway.doctor.footing import footing
from policy.rules import Policy, UnixAddress

UNIX_PREFIX = "unix:"
# Where engines and what runs beside them listen unless told otherwise: ssh, web, vLLM, llama.cpp, SGLang, Ray (GCS,
# dashboard, client), torch.distributed, Docker, kubelet, Prometheus exporters, Triton, Jupyter, debugpy.
ENGINE_PORTS = (
    22, 80, 443, 2375, 5678, 6379, 8000, 8001, 8002, 8080, 8265, 8888, 9090, 9100, 9400, 10001, 10250, 29500, 30000,
)  # fmt: skip
READY_BYTES_MAX = 64 * 1024


def gateway_side(policy: Policy, *, limit_s: float) -> list[Finding]:
    """All findings."""
    probes = [probe for model in sorted(policy.models) for probe in _backend(policy.models[model].upstream)]
    probes += list(_admin(policy))
    probes += list(footing(policy))
    return examine(probes, limit_s=limit_s)


def _backend(upstream: str) -> Iterator[Probe]:
    if upstream.startswith(UNIX_PREFIX):
        path = upstream.removeprefix(UNIX_PREFIX)
        yield Probe(kind="backend", target=path, how="connected to", act=partial(_socket_answers, path))
        yield Probe(kind="backend", target=path, how="looked at its rights", act=lambda _: _socket_is_ours(Path(path)))
        return
    url = urlsplit(upstream)
    assert url.hostname is not None, "the policy's parser asks for one"
    host, port = url.hostname, url.port or 80
    yield Probe(kind="backend", target=f"{host}:{port}", how="TCP connection", act=partial(_answers, host, port))
    if _is_loopback(host):
        for address in surroundings.own_addresses():
            act = partial(_also, f"bind it to {host}", address, port)
            yield Probe(kind="backend, other ways", target=f"[{address}]:{port}", how="TCP connection", act=act)
        return
    for other in ENGINE_PORTS:
        if other != port:
            act = partial(_also, "only the policy's port should answer", host, other)
            yield Probe(kind="backend, other ways", target=f"{host}:{other}", how="TCP connection", act=act)


def _answers(host: str, port: int, limit_s: float) -> Result:
    verdict, detail = packets.named_tcp(host, port, limit_s)
    return (Verdict.RIGHT if verdict is Verdict.OPEN else Verdict.WRONG), detail


def _also(cure: str, host: str, port: int, limit_s: float) -> Result:
    verdict, detail = packets.named_tcp(host, port, limit_s)
    if verdict is Verdict.OPEN and detail == packets.CONNECTED:
        return Verdict.OPEN, f"somebody listens there too: {cure}"
    return Verdict.CLOSED, detail if verdict is not Verdict.OPEN else "nobody listens"


def _socket_answers(path: str, limit_s: float) -> Result:
    answers, detail = unix.connected(path, unix.STREAM, limit_s)
    return (Verdict.RIGHT if answers else Verdict.WRONG), detail


def _socket_is_ours(path: Path) -> Result:
    """Whoever else may connect reads answers that nobody counts; whoever else may write the directory can stand in for it."""
    directory = path.parent
    try:
        socket_mode, directory_mode = path.stat().st_mode, directory.stat().st_mode
    except OSError as fault:
        return Verdict.WRONG, fault.strerror or str(fault)
    if directory_mode & stat.S_IWOTH:
        return Verdict.OPEN, f"everybody may put another socket into {directory}"
    if socket_mode & stat.S_IWOTH and directory_mode & stat.S_IXOTH:
        return Verdict.OPEN, "everybody on this host may connect"
    return (
        Verdict.CLOSED,
        f"mode {stat.S_IMODE(socket_mode):03o} in a directory of mode {stat.S_IMODE(directory_mode):03o}",
    )


def _admin(policy: Policy) -> Iterator[Probe]:
    if isinstance(policy.admin, UnixAddress):
        path = policy.admin.path
        closed = (Verdict.CLOSED, "a Unix socket")
        yield Probe(kind="admin port", target=path, how="read the policy", act=lambda _: closed)
        yield Probe(
            kind="gateway", target=path, how="looked for", act=lambda _: (Verdict.UNTESTED, "ask /readyz there")
        )
        return
    host, port = policy.admin.host, policy.admin.port
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    yield Probe(kind="admin port", target=place, how="read the policy", act=partial(_reach, policy, host, port))
    asked = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    yield Probe(kind="gateway", target=place, how="asked /readyz", act=partial(_ready, asked, port))


def _reach(policy: Policy, host: str, port: int, limit_s: float) -> Result:
    """A filter may stand before it, which cannot be seen from here."""
    if _is_loopback(host):
        return Verdict.CLOSED, "on loopback: another host or pod cannot reach it"
    addresses = set()
    for model in policy.models.values():
        engine = urlsplit(model.upstream).hostname
        if engine is not None and (address := packets.address_of(engine)) and (own := packets.source(address)):
            addresses.add(own)
    from_there = " or ".join(sorted(f"tcp:{address}:{port}" for address in addresses or {"127.0.0.1"}))
    return Verdict.UNTESTED, f"not on loopback: try `weir doctor --from engine --target {from_there}`"


def _ready(host: str, port: int, limit_s: float) -> Result:
    connection = http.client.HTTPConnection(host, port, timeout=limit_s)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        said = answer.read(READY_BYTES_MAX).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as fault:
        return Verdict.UNTESTED, f"no gateway answers: {fault}"
    finally:
        connection.close()
    return (Verdict.RIGHT, "ready") if answer.status == 200 else (Verdict.WRONG, f"not ready: {said}")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
