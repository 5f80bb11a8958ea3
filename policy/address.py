"""Addresses as operators write them: `127.0.0.1:8080`, `[::1]:8080`, `unix:/run/weir.sock`.

Every function raises ValueError with a sentence that shows the form it wants.
"""

import ipaddress
import re

from policy.mistakes import quoted
from policy.rules import Address, TcpAddress, UnixAddress

SOCKET_PATH_BYTES_MAX = 107  # sun_path holds 108 with its terminator (unix(7))
_LABEL = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"  # RFC 1123, and the underscore that container networks use
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_HOST_PORT = re.compile(r"(?:\[(?P<six>[^\[\]]*)\]|(?P<host>[^:\[\]/@?#]*)):(?P<port>[0-9]{1,5})")
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, never bound

_ADDRESS_FORM = 'write for example 127.0.0.1:8080, "[::1]:8080" (with quotes) or unix:/run/weir.sock'
_UPSTREAM_FORM = "write http://host:port or unix:/path, without path, query or user"


def address(text: str) -> Address:
    """Where the gateway listens."""
    parsed = _address(text)
    if parsed is None:
        raise ValueError(f"{quoted(text)} is not an address; {_ADDRESS_FORM}")
    return parsed


def upstream(text: str) -> str:
    """Where a backend listens, in the one spelling that later code compares and dials."""
    parsed = _address(text.removeprefix("http://"))
    if isinstance(parsed, UnixAddress) and text.startswith("unix:"):
        return f"unix:{parsed.path}"
    if isinstance(parsed, TcpAddress) and text.startswith("http://") and parsed.port != 0:
        host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
        return f"http://{host}:{parsed.port}"
    raise ValueError(f"{quoted(text)} is not a backend; {_UPSTREAM_FORM}")


def collide(one: Address, other: Address) -> bool:
    """Whether two sockets could not be bound at the same time, or would answer for each other."""
    if isinstance(one, UnixAddress) or isinstance(other, UnixAddress):
        return one == other
    same_port = one.port == other.port != 0
    return same_port and (one.host == other.host or not _WILDCARDS.isdisjoint({one.host, other.host}))


def _address(text: str) -> Address | None:
    if text.startswith("unix:"):
        return _unix_address(text.removeprefix("unix:"))
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match["port"]) > 65_535:
        return None
    host = _ip_literal(match["six"], version=6) if match["host"] is None else _host(match["host"])
    return None if host is None else TcpAddress(host=host, port=int(match["port"]))


def _unix_address(path: str) -> UnixAddress | None:
    if not path.startswith("/") or len(path.encode()) > SOCKET_PATH_BYTES_MAX:
        return None
    return UnixAddress(path=path)


def _host(text: str) -> str | None:
    if re.fullmatch(r"[0-9.]+", text):
        return _ip_literal(text, version=4)  # "10.0.1" is a typing error, not a host name
    return text.lower() if _HOST_NAME.fullmatch(text) else None


def _ip_literal(text: str, *, version: int) -> str | None:
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    return str(parsed) if parsed.version == version else None
