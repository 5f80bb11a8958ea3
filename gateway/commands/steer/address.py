"""Which server is meant: the options that every command has, and what `weir up` left behind."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from gateway.commands.steer.server import Address, Undecided
from gateway.config import ConfigError, load
from policy.rules import TcpAddress

DEFAULT_URL = "http://127.0.0.1:8080"
TENANT = "acme"  # of the two that `weir up` makes, the one that may steer


def add_server(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--url",
        metavar="URL",
        help="a gateway, or a model server directly; default: $WEIR_URL, else the gateway of `weir up`",
    )
    group.add_argument("--key", metavar="KEY", help="the API key; default: $WEIR_KEY, else that of `weir up`")
    group.add_argument("--model", metavar="NAME", help="needed if the key may use several")
    group.add_argument(
        "--state", type=Path, default=Path("var"), metavar="DIR", help="of `weir up` (default: %(default)s)"
    )
    group.add_argument("--json", action="store_true", help="print JSON on stdout, for programs")


def address_of(arguments: argparse.Namespace) -> Address:
    """The address that the options, the environment or `weir up` name. Raises `Undecided`."""
    url = arguments.url or os.environ.get("WEIR_URL")
    key = arguments.key or os.environ.get("WEIR_KEY")
    if url is None:
        # The key of the demonstration goes to the demonstration's address, and nowhere else.
        url, key = _of_up(arguments.state, key)
    if not url.startswith(("http://", "https://")):
        raise Undecided(f"{url}: the address must begin with http:// or https://")
    return Address(url=url, key=key, model=arguments.model)


def _of_up(state: Path, key: str | None) -> tuple[str, str | None]:
    policy, keys = state / "weir.yaml", state / "keys.json"
    if not policy.exists():
        return DEFAULT_URL, key
    try:
        listen = load(policy).policy.listen
        kept = json.loads(keys.read_text()).get(TENANT) if key is None and keys.exists() else None
    except (ConfigError, OSError, ValueError) as fault:
        raise Undecided(f"{state}: {fault}\nName a server with --url.") from fault
    if not isinstance(listen, TcpAddress):
        raise Undecided(f"{policy}: the gateway listens on a Unix socket; `weir steer` speaks TCP")
    return f"http://{listen.host}:{listen.port}", key or kept
