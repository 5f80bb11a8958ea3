"""The `weir` command."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version

from gateway.commands import (
    audit,
    check,
    claims,
    dictionary,
    doctor,
    keys,
    ledger,
    licence,
    schema,
    serve,
    status,
    steer,
    up,
)

_DESCRIPTION = """\
Weir is an egress gateway for model inference. It stands at the only exit of the inference servers, charges every bit
that leaves against budgets derived from the size of the weights, and lets nothing leave that is not charged first."""

_EPILOG = """\
examples:
  weir up                        start the demonstration: a real model, a gateway in front of it, a key to try it with
  weir check weir.yaml           check a policy without starting anything, and print what it promises
  weir serve --policy weir.yaml  run the gateway
  weir doctor --from engine      try to get out another way, from the engine's place
  weir status                    watch the budgets of a running gateway
  weir ledger show               look at the accounts and leases behind them
  weir audit verify ./var/audit  verify the log of everything that left
  weir licence show              who signed the operating licence, and how long it lasts
  weir steer try mood "Hello"    ask the plain model and the steered one side by side
  weir keys new-tenant acme      make an API key and the lines of policy that admit it

exit status: 0 done, 1 failed, 2 wrong usage, 78 the policy has mistakes"""


def main() -> int:
    """Parse the command line and run one subcommand; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="weir", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"weir {version('weir')}")
    parsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands = (up, serve, check, doctor, status, claims, ledger, audit, keys, licence, steer, dictionary, schema)
    for command in commands:
        command.add(parsers)
    arguments = parser.parse_args()
    result: int = arguments.run(arguments)
    return result


if __name__ == "__main__":
    sys.exit(main())
