"""`weir keys`: make the secrets that a policy refers to."""

from __future__ import annotations

import argparse
import hashlib
import re
import secrets
import sys
from pathlib import Path

KEY_BYTES = 24  # 192 bits: nobody guesses it, and it fits a line
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE = "A name has 1 to 64 letters, digits, dots, dashes and underscores; the first is a letter or digit.\n"

_AUDITOR = """\
Make an auditor's key pair, on the auditor's own machine: the gateway never needs the private key and must not have it.
The public key is printed, as a line for the policy; the private key goes into a file that only its owner may read.

Content (prompts, answers) is kept in the audit log sealed to every auditor that the policy names, and a policy names at
least two, so that a lost key loses nothing. Whoever has one of the private keys can read what was sealed while the
policy named its public key; nobody else can, not even with the whole gateway in hand.

  audit:
    directory: ./var/audit
    auditors:
      - weir-auditor-x25519:anna:...
      - weir-auditor-x25519:boris:..."""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "keys", help="make API keys and auditors' keys", description="Make the secrets that a policy refers to."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    tenant = commands.add_parser(
        "new-tenant",
        help="make an API key for a tenant",
        description="Make an API key. It is printed once and stored nowhere: the policy holds its SHA-256 digest only.",
    )
    tenant.add_argument("name", help="the tenant's name, as it will appear in the policy and in metrics")
    tenant.set_defaults(run=run)
    auditor = commands.add_parser(
        "auditor",
        help="make an auditor's key pair",
        description=_AUDITOR,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    auditor.add_argument("name", help="the auditor's name, as it will appear in the policy")
    auditor.add_argument("--out", type=Path, metavar="FILE", help="of the private key (default: NAME.auditor-key)")
    auditor.add_argument(
        "--algorithm",
        choices=["x25519", "xwing"],
        default="x25519",
        help="xwing also withstands quantum computers, and adds 1.1 kB to every sealed batch (default: %(default)s)",
    )
    auditor.set_defaults(run=run_auditor)


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


def run_auditor(arguments: argparse.Namespace) -> int:
    """Print the public key on standard output, write the private one to its file; returns the exit status."""
    from gateway.key_files import KeyFileError, make_auditor

    if not NAME.fullmatch(arguments.name):
        sys.stderr.write(NAME_RULE)
        return 2
    path: Path = arguments.out or Path(f"{arguments.name}.auditor-key")
    try:
        public = make_auditor(arguments.name, arguments.algorithm, path)
    except KeyFileError as fault:
        sys.stderr.write(f"{fault}\n")
        return 1
    sys.stdout.write(f"{public}\n")
    sys.stderr.write(f"The line above goes under 'audit: auditors:' of the policy. The private key is in {path}:\n")
    sys.stderr.write(
        "keep it away from the gateway, and keep a copy. Who loses it cannot read what was sealed to it.\n"
    )
    return 0
