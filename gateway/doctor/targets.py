"""What the doctor tries from the engine's place, unless it is told otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

# Public resolvers answer on all of these, from nearly everywhere; that they do not answer here means something.
PUBLIC4, PUBLIC6 = ("1.1.1.1", "8.8.8.8"), ("2606:4700:4700::1111", "2001:4860:4860::8888")
TCP_PORTS = (53, 80, 443, 853)
UDP_PORTS = (443, 33434)  # QUIC; and where nobody listens, so that an open way says so
HOPS = (2, 3, 4)  # the first is the next hop, which says so before its filters are asked
PUBLIC_NAME = "example.com"  # RFC 2606
# Who asks here gets credentials that are good elsewhere; and the way there leads past many filters.
METADATA = (
    "169.254.169.254",  # AWS, Google, Azure, Oracle, OpenStack, DigitalOcean
    "fd00:ec2::254",  # AWS
    "169.254.170.2",  # AWS ECS
    "169.254.170.23",  # AWS EKS
    "fd00:ec2::23",
    "100.100.100.200",  # Alibaba
    "168.63.129.16",  # Azure's host
)
METADATA_NAME = "metadata.google.internal"
# On the next hop: the node that carries this container. A name server, a web server, ssh, Docker, Kubernetes.
NEXT_HOP_PORTS = (22, 53, 80, 443, 2375, 6443, 10250)
RDMA = "/dev/infiniband"
VSOCK_HOST, VSOCK_PORT = 2, 1024  # the hypervisor


class BadTarget(ValueError):
    """A target or an exception that cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`tcp:HOST:PORT`, `udp:HOST:PORT`, `dns:HOST`, `icmp:HOST` or `unix:PATH`."""

    kind: str
    host: str  # or path
    port: int = 0

    def __str__(self) -> str:
        """As it is written."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}:{host}:{self.port}" if self.port else f"{self.kind}:{self.host}"


def target(word: str) -> Target:
    """Read one. Raises `BadTarget`."""
    kind, _, rest = word.partition(":")
    if kind == "unix" and rest.startswith("/"):
        return Target(kind=kind, host=rest)
    if kind in ("dns", "icmp") and rest:
        return Target(kind=kind, host=_address(rest.strip("[]"), word))
    host, _, port = rest.rpartition(":")
    if kind in ("tcp", "udp") and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536:
        return Target(kind=kind, host=_address(host.strip("[]"), word), port=int(port))
    raise BadTarget(f"{word!r}: write tcp:ADDRESS:PORT, udp:ADDRESS:PORT, dns:ADDRESS, icmp:ADDRESS or unix:/PATH")


def _address(host: str, word: str) -> str:
    try:
        return str(ip_address(host))
    except ValueError:
        raise BadTarget(f"{word!r}: {host!r} is not an IP address; names are not looked up") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What the engine may reach: addresses, addresses with ports, and paths of sockets."""

    words: frozenset[str] = frozenset()

    def covers(self, host: str, port: int = 0) -> bool:
        """Whether this host, or this port of it, is not to be tried."""
        host = host.partition("%")[0]
        return host in self.words or f"{host}:{port}" in self.words or f"[{host}]:{port}" in self.words

    @property
    def sockets(self) -> frozenset[str]:
        """Paths, and names of abstract sockets."""
        return frozenset(word.removeprefix("unix:") for word in self.words if word.startswith("unix:"))
