"""`weir licence`: make, sign, look at and install the operating licence without which nothing leaves."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from gateway.authority import (
    ENVELOPE_BYTES_MAX,
    GATEWAYS_MAX,
    VERSION_MAX,
    Change,
    Denied,
    Licence,
    Terms,
    amend,
    authentic,
    covers,
    fresh,
    objection,
    read,
    sign,
    time_text,
    timely,
    written,
)
from gateway.commands.check import MISTAKES
from gateway.commands.keys import NAME, NAME_RULE
from gateway.config import POLICY_BYTES_MAX
from gateway.key_files import KeyFileError, make_signer, read_signer
from gateway.tenure import Unforgetting, amendment_path, covered
from policy.document import parse
from policy.mistakes import Mistakes
from policy.quantity import whole_duration_s
from policy.rules import LicenceRule, Policy
from policy.strictness import looser

_DESCRIPTION = """\
The operating licence is a dead man's switch: a file that names a policy, the gateways it is for and the hour at which it
ends, signed by as many people as the policy asks for. Without one in force nothing leaves. Nobody has to do anything to
stop egress; somebody has to do something, again and again, for it to go on."""

_EPILOG = """\
once, each signer on a machine of their own:
  weir licence key anna                      makes anna.signer-key, prints the line for the policy

in the policy (docs/policy.md):
  licence:
    file: /etc/weir/licence.json
    keys: [weir-signer-ed25519:anna:..., weir-signer-ed25519:boris:..., weir-signer-ed25519:cleo:...]
    threshold: 2
    gateway: gate-1

each time, before the last one ends:
  weir licence new --policy weir.yaml --expires 24h --out next.json
  weir licence sign --key anna.signer-key next.json
  weir licence sign --key boris.signer-key next.json      (the file may travel; order does not matter)
  weir licence show next.json --policy weir.yaml          what it says, who signed, how long it lasts
  weir licence install next.json --policy weir.yaml       on the gateway's host; a running gateway takes it in a second

to lower a budget at once, with one key:
  weir licence amend --licensed weir.old.yaml --policy weir.yaml --key anna.signer-key

exit status: 0 done, 1 refused or failed, 2 wrong usage, 78 the policy has mistakes"""


class Refusal(Exception):
    """The command cannot be carried out. The message is one line for whoever typed it."""


class PolicyMistakes(Exception):
    """The policy has mistakes, which the message lists."""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "licence",
        help="make, sign and install operating licences",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    key = commands.add_parser(
        "key",
        help="make a signer's key pair",
        description="Make a signer's Ed25519 key pair. The public key is printed as a line for the policy; the private"
        " key goes into a file that only its owner may read, and never onto the gateway.",
    )
    key.add_argument("name", help="the signer's name, as it will appear in the policy and the audit log")
    key.add_argument("--out", type=Path, metavar="FILE", help="of the private key (default: NAME.signer-key)")
    key.set_defaults(run=_guarded(_key))

    new = commands.add_parser(
        "new",
        help="write a licence that nobody has signed yet",
        description="Write a licence for this policy, unsigned. It begins now. Neither the weights nor the gateway's host"
        " are needed: the policy's text is enough.",
    )
    _policy_argument(new)
    new.add_argument(
        "--gateway",
        action="append",
        metavar="NAME",
        help="a gateway that it is for; may be given many times (default: the policy's own)",
    )
    new.add_argument(
        "--expires",
        default="24h",
        metavar="DURATION",
        help="how long it lasts from now, such as 24h (default: %(default)s)",
    )
    new.add_argument(
        "--version",
        type=int,
        metavar="N",
        help="higher than any that was in force (default: one more than the licence the policy names, or 1)",
    )
    new.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="where to; an existing file is not overwritten"
    )
    new.set_defaults(run=_guarded(_new))

    signing = commands.add_parser(
        "sign",
        help="add a signature",
        description="Add the signature of one key, after printing what is signed. A second signature of the same key is"
        " refused: it would count for nothing.",
    )
    signing.add_argument("file", type=Path, metavar="LICENCE")
    signing.add_argument("--key", type=Path, required=True, metavar="FILE", help="made by `weir licence key`")
    signing.set_defaults(run=_guarded(_sign))

    show = commands.add_parser(
        "show",
        help="who signed, what for, how long",
        description="Print a licence, and what a gateway with this policy would say to it now.",
    )
    show.add_argument("file", type=Path, nargs="?", metavar="LICENCE", help="default: the one that the policy names")
    _policy_argument(show)
    show.set_defaults(run=_guarded(_show))

    install = commands.add_parser(
        "install",
        help="check a licence and put it where the gateway looks",
        description="Check everything that the gateway will check (signatures, gateway, policy, version, time) and replace"
        " the file that the policy names, in one step. Run it on the gateway's host, as the gateway's user and in its"
        " working directory: what was in force before is remembered in the audit directory.",
    )
    install.add_argument("file", type=Path, metavar="LICENCE")
    _policy_argument(install)
    install.set_defaults(run=_guarded(_install))

    amending = commands.add_parser(
        "amend",
        help="with one key: let the licence cover a policy that permits no more",
        description="Raising a budget, adding an auditor or loosening a meter takes a new licence. Lowering takes one"
        " signature: an amendment lets licences for one policy cover another that provably permits no more. What is not"
        " known to be stricter is refused, and named. The gateway checks all of it again. Put the amendment beside the"
        " licence, then change the policy file and send SIGHUP.",
    )
    _policy_argument(amending)
    amending.add_argument(
        "--licensed", type=Path, required=True, metavar="FILE", help="the policy that the licence is for, as it was"
    )
    amending.add_argument("--key", type=Path, required=True, metavar="FILE", help="made by `weir licence key`")
    amending.add_argument("--out", type=Path, metavar="FILE", help="default: the licence's file and `.amendment`")
    amending.set_defaults(run=_guarded(_amend))


def _policy_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", type=Path, default=Path("weir.yaml"), metavar="FILE", help="default: %(default)s")


def _guarded(command: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], int]:
    """The command, with its refusals as a line and an exit status."""

    def run(arguments: argparse.Namespace) -> int:
        try:
            command(arguments)
        except PolicyMistakes as mistakes:
            sys.stderr.write(f"{mistakes}\n")
            return MISTAKES
        except (Refusal, KeyFileError) as refusal:
            sys.stderr.write(f"{refusal}\n")
            return 1
        except OSError as fault:
            sys.stderr.write(f"{fault.filename}: {fault.strerror}\n")
            return 1
        return 0

    return run


def _key(arguments: argparse.Namespace) -> None:
    if not NAME.fullmatch(arguments.name):
        raise Refusal(NAME_RULE.rstrip())
    path: Path = arguments.out or Path(f"{arguments.name}.signer-key")
    sys.stdout.write(f"{make_signer(arguments.name, path)}\n")
    sys.stderr.write(f"The line above goes under 'licence: keys:' of the policy. The private key is in {path}.\n")


def _new(arguments: argparse.Namespace) -> None:
    policy, rule = _policy(arguments.policy)
    gateways = tuple(sorted(set(arguments.gateway or [rule.gateway])))
    if len(gateways) > GATEWAYS_MAX or not all(NAME.fullmatch(name) for name in gateways):
        raise Refusal(NAME_RULE.rstrip())
    try:
        lasts_s = whole_duration_s(arguments.expires)
    except ValueError as mistake:
        raise Refusal(f"--expires: {mistake}") from mistake
    version: int = _next_version(rule) if arguments.version is None else arguments.version
    if not 1 <= version <= VERSION_MAX:
        raise Refusal(f"--version: write a number from 1 to {VERSION_MAX}")
    now_s = int(_wall_s())
    terms = Terms(version=version, not_before=now_s, expires=now_s + lasts_s, gateways=gateways, policy=policy.digest)
    fd = os.open(arguments.out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(written(Licence(terms=terms)))
    _print_terms(terms)
    sys.stdout.write(f"{arguments.out} takes {rule.threshold} of {len(rule.keys)} signatures: weir licence sign\n")


def _sign(arguments: argparse.Namespace) -> None:
    private = read_signer(arguments.key)
    licence = _licence(arguments.file)
    _print_terms(licence.terms)
    signed = sign(licence, private)
    if signed is None:
        raise Refusal(f"{arguments.file}: this key has signed it already, and two signatures of one key count once")
    _replace(arguments.file, written(signed))
    sys.stdout.write(f"signed; {arguments.file} has {len(signed.signatures)} signatures now\n")


def _show(arguments: argparse.Namespace) -> None:
    policy, rule = _policy(arguments.policy)
    licence = _licence(arguments.file or Path(rule.file))
    _print_terms(licence.terms)
    signers = licence.signers(rule.keys)
    for key in rule.keys:
        sys.stdout.write(f"  {key.name:<20} {'signed' if key in signers else '-'}\n")
    unknown = len(licence.signatures) - len(signers)
    if unknown:
        sys.stdout.write(
            f"  {unknown} more that count for nothing: of other keys, of a key that signed already, or broken\n"
        )
    sys.stdout.write(f"{len(signers)} of {rule.threshold} signatures that the policy asks for\n")
    now_s = _wall_s()
    for denied in (
        authentic(licence, rule),
        covers(licence, covered(licence, policy, rule)),
        timely(licence, wall_s=now_s, latest_s=0),
    ):
        if denied is not None:
            sys.stdout.write(f"not in force: {denied.cause.value}: {denied.detail}\n")
    left_s = licence.terms.expires - now_s
    if left_s > 0:
        sys.stdout.write(f"ends in {_span(left_s)}\n")


def _install(arguments: argparse.Namespace) -> None:
    policy, rule = _policy(arguments.policy)
    licence = _licence(arguments.file)
    memory = Unforgetting(Path(policy.audit.directory)).recall()
    denied = objection(
        licence,
        rule=rule,
        policy=covered(licence, policy, rule),
        memory=memory,
        wall_s=_wall_s(),
        latest_s=memory.latest_s,
    )
    installed = _installed(rule)
    if denied is None and installed is not None and authentic(installed, rule) is None:
        # Not yet taken, perhaps: a gateway that is about to begin would otherwise find that it went back.
        denied = fresh(licence, memory.with_licence(installed))
    if denied is not None:
        raise Refusal(f"{arguments.file}: {denied.cause.value}: {denied.detail}")
    _replace(Path(rule.file), written(licence))
    _print_terms(licence.terms)
    sys.stdout.write(f"installed as {rule.file}; ends in {_span(licence.terms.expires - _wall_s())}\n")


def _amend(arguments: argparse.Namespace) -> None:
    private = read_signer(arguments.key)
    licensed, _ = _policy(arguments.licensed)
    policy, rule = _policy(arguments.policy)
    beyond = looser(licensed, policy)
    if beyond:
        raise Refusal(
            f"{arguments.policy} may permit more than {arguments.licensed}, which takes a licence: {', '.join(beyond)}"
        )
    amendment = amend(Change(licensed=arguments.licensed.read_text(), policy=policy.digest), private)
    if not amendment.signers(rule.keys):
        raise Refusal(f"{arguments.key}: this is none of the keys that the policy names")
    path: Path = arguments.out or amendment_path(rule)
    _replace(path, written(amendment))
    sys.stdout.write(f"{path} carries licences for policy {licensed.digest}\n  over to policy {policy.digest}\n")


def _policy(path: Path) -> tuple[Policy, LicenceRule]:
    """The rules alone: neither weights nor other files of the gateway's host need to be here."""
    with path.open("rb") as file:
        data = file.read(POLICY_BYTES_MAX + 1)
    try:
        text = data.decode()
    except UnicodeDecodeError as fault:
        raise PolicyMistakes(f"{path}: byte {fault.start} is not UTF-8") from fault
    policy = parse(text, name=str(path))
    if isinstance(policy, Mistakes):
        raise PolicyMistakes(policy.render())
    if policy.licence is None:
        raise Refusal(f"{path}: this policy asks for no licence; see `licence:` in docs/policy.md")
    return policy, policy.licence


def _licence(path: Path) -> Licence:
    with path.open("rb") as file:
        licence = read(file.read(ENVELOPE_BYTES_MAX + 1))
    if isinstance(licence, Denied):
        raise Refusal(f"{path}: this is no licence: {licence.detail}")
    return licence


def _installed(rule: LicenceRule) -> Licence | None:
    try:
        return _licence(Path(rule.file))
    except (Refusal, FileNotFoundError):
        return None


def _next_version(rule: LicenceRule) -> int:
    installed = _installed(rule)
    return installed.terms.version + 1 if installed is not None else 1


def _replace(path: Path, data: bytes) -> None:
    """In one step: whoever reads the file gets the old one or the new one, whole, and so does a machine that loses power."""
    draft = path.with_name(f".{path.name}.new")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _print_terms(terms: Terms) -> None:
    sys.stdout.write(
        f"licence version {terms.version}\n"
        f"  for gateways  {', '.join(terms.gateways)}\n"
        f"  for policy    {terms.policy}\n"
        f"  from          {time_text(terms.not_before)}\n"
        f"  until         {time_text(terms.expires)}, {_span(terms.expires - terms.not_before)} later\n"
    )


def _span(seconds: float) -> str:
    whole = int(seconds)
    hours = Fraction(whole, 3600)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min" if hours < 2 else f"{float(hours):.1f} h"


def _wall_s() -> float:
    return time.time()
