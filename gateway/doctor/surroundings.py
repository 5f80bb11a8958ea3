"""What this process can read about where it is: routes, name servers, proxies, mounted sockets. Texts in, values out."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from urllib.parse import urlsplit

_UP, _REJECT = 0x1, 0x200  # RTF_UP, RTF_REJECT
_PROXY_PORTS = {"http": 80, "https": 443, "socks4": 1080, "socks5": 1080, "socks5h": 1080}
_PROXY_PORT_DEFAULT = 3128


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultRoute:
    """Where everything goes that has no route of its own. `next_hop` is None if the link itself leads on."""

    device: str
    next_hop: str | None


def default_routes4(table: str) -> Iterator[DefaultRoute]:
    """From /proc/self/net/route."""
    for line in table.splitlines()[1:]:
        device, destination, gateway, flags, _, _, _, mask = line.split()[:8]
        if int(destination, 16) == 0 and int(mask, 16) == 0 and int(flags, 16) & _UP and not int(flags, 16) & _REJECT:
            hop = socket.inet_ntoa(struct.pack("=I", int(gateway, 16)))
            yield DefaultRoute(device=device, next_hop=None if hop == "0.0.0.0" else hop)  # noqa: S104


def default_routes6(table: str) -> Iterator[DefaultRoute]:
    """From /proc/self/net/ipv6_route."""
    for line in table.splitlines():
        destination, length, _, _, hop, _, _, _, flags, device = line.split()
        if int(destination, 16) == 0 and int(length, 16) == 0 and int(flags, 16) & _UP and not int(flags, 16) & _REJECT:
            address = IPv6Address(bytes.fromhex(hop))
            # A link-local next hop takes its interface with it: it means nothing without.
            name = f"{address}%{device}" if address.is_link_local else str(address)
            yield DefaultRoute(device=device, next_hop=None if int(address) == 0 else name)


def name_servers(text: str) -> list[str]:
    """From /etc/resolv.conf."""
    servers = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and _is_address(words[1]):
            servers.append(words[1])
    return servers


def proxies(environment: Mapping[str, str]) -> list[tuple[str, str, int]]:
    """Name of the variable, host and port of each proxy that programs here would use. The value may hold a password."""
    found = []
    for name, value in sorted(environment.items()):
        if not name.lower().endswith("_proxy") or name.lower() == "no_proxy" or not value:
            continue
        try:
            url = urlsplit(value if "://" in value else f"http://{value}")
            if url.hostname:
                found.append((name, url.hostname, url.port or _PROXY_PORTS.get(url.scheme, _PROXY_PORT_DEFAULT)))
        except ValueError:
            continue  # no program here can use it either
    return found


def own_addresses() -> list[str]:
    """This host's addresses other than loopback and link-local ones."""
    found = set(_local4(Path("/proc/self/net/fib_trie").read_text()))
    with suppress(OSError):  # a kernel without IPv6
        for line in Path("/proc/self/net/if_inet6").read_text().splitlines():
            found.add(str(IPv6Address(bytes.fromhex(line.split()[0]))))
    usable = (address for address in map(ip_address, found) if not address.is_loopback and not address.is_link_local)
    return sorted(map(str, usable))


def _local4(trie: str) -> Iterator[str]:
    """Of the routing trie, the leaves that the line after calls hosts of this machine."""
    leaf = ""
    for line in trie.splitlines():
        word = line.split()
        if word[:1] == ["|--"]:
            leaf = word[1]
        elif "host LOCAL" in line:
            yield leaf


def abstract_sockets(table: str) -> list[tuple[str, int]]:
    """Name and type of the abstract sockets that take connections or datagrams, from /proc/self/net/unix."""
    found = set()
    for line in table.splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) < 8 or not words[7].startswith("@"):
            continue
        flags, kind = int(words[3], 16), int(words[4], 16)
        if flags & 0x10000 or kind == socket.SOCK_DGRAM:  # __SO_ACCEPTCON
            found.add((words[7][1:], kind))
    return sorted(found)


def _is_address(word: str) -> bool:
    try:
        ip_address(word.partition("%")[0])
    except ValueError:
        return False
    return True
