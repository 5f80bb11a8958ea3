"""`weir keys`: make the secrets that a policy refers to."""

from __future__ import annotations

import argparse
import hashlib
import re
import secrets
import sys

KEY_BYTES = 24  # 192 bits: nobody guesses it, and it fits a line
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser("keys", help="make API keys", description="Make the secrets that a policy refers to.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    tenant = commands.add_parser(
        "new-tenant",
        help="make an API key for a tenant",
        description="Make an API key. It is printed once and stored nowhere: the policy holds its SHA-256 digest only.",
    )
    tenant.add_argument("name", help="the tenant's name, as it will appear in the policy and in metrics")
    tenant.set_defaults(run=run)


def new_key() -> tuple[str, str]:
    """A fresh key and its digest as a policy spells it."""
    key = f"weir-{secrets.token_hex(KEY_BYTES)}"
    return key, f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def run(arguments: argparse.Namespace) -> int:
    """Print the key on standard output and the policy lines on standard error."""
    if not NAME.fullmatch(arguments.name):
        sys.stderr.write("A tenant's name has 1 to 64 letters, digits, dots, dashes and underscores.\n")
        return 2
    key, digest = new_key()
    sys.stdout.write(f"{key}\n")
    sys.stderr.write("Give the line above to the tenant. Put this under 'tenants:' in the policy, then send SIGHUP:\n")
    sys.stderr.write(f"  {arguments.name}: {{keys: [{digest}], models: [NAME OF A MODEL]}}\n")
    return 0
