"""`weir check`: a policy without starting anything, and what it promises."""

from __future__ import annotations

import argparse
import sys
from fractions import Fraction
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gateway.config import Config, ConfigError, load
from policy.claims import Claim, Theft, claim_table

MISTAKES = 78  # EX_CONFIG of sysexits.h
DAYS_PER_YEAR = 365

_DESCRIPTION = """\
Check a policy file and the weights it names. Every mistake is printed at once with file, line and column. A policy
without mistakes gets its claim table: for each model what a thief needs under several assumptions, and how long the
budgets make that take; then what honest users are left with. Nothing is started and nothing is written."""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "check",
        help="check a policy and print what it promises",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("policy", type=Path, nargs="?", default=Path("weir.yaml"), help="default: %(default)s")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check and print; returns the exit status."""
    try:
        config = load(arguments.policy)
    except ConfigError as mistakes:
        sys.stderr.write(f"{mistakes}\n")
        return MISTAKES
    console = Console(highlight=False)
    for claim in claim_table(config.policy, config.parameters):
        _print(console, claim)
    _print_tenants(console, config)
    return 0


def _print(console: Console, claim: Claim) -> None:
    console.print(f"\n[bold]{claim.model}[/bold]: {claim.parameters:,} parameters", soft_wrap=True)
    table = Table(title_justify="left")
    table.add_column("thief's compression")
    table.add_column("bytes needed (W)", justify="right")
    table.add_column("time to theft at the caps", justify="right")
    table.add_column("lifetime budget is", justify="right")
    for theft in claim.thefts:
        own = theft.compression == claim.theft_compression
        name = f"{theft.assumption} (÷{float(theft.compression):g})" + ("  <- this policy" if own else "")
        share = "-" if theft.lifetime_share is None else f"{float(theft.lifetime_share):.3g} of W"
        table.add_row(name, bytes_text(theft.theft_bits), time_text(theft), share, style="bold" if own else None)
    console.print(table)
    for cap in claim.caps:
        per_day = "" if cap.bits_per_day is None else f", {bytes_text(cap.bits_per_day)} a day"
        console.print(f"  budget {cap.window.name}: {cap.limit_bits:,} bits ({bytes_text(cap.limit_bits)}{per_day})")
    for use in claim.honest:
        console.print(
            f"  honest English chat that fits, estimated, code {use.code}: {use.tokens_per_day:,} tokens a day"
        )
    for sentence in (*claim.transcripts, claim.days):
        console.print(f"  {sentence}", soft_wrap=True)
    console.print("  Conditions: " + " ".join(claim.conditions), soft_wrap=True)


def _print_tenants(console: Console, config: Config) -> None:
    console.print(f"\npolicy {config.policy.digest}")
    for tenant in config.policy.tenants.values():
        parts = [f"{float(tenant.share):.0%} of each budget"] if tenant.share is not None else []
        parts += [f"{bytes_text(budget.bits)} in {budget.window.name}" for budget in tenant.budgets]
        what = ", ".join(parts) or "no budget of its own"
        steering = ", may steer" if tenant.steering else ""
        console.print(f"  tenant {tenant.name}: {', '.join(sorted(tenant.models))}; {what}{steering}")


def bytes_text(bits: int) -> str:
    """Bits as bytes that people can compare: 2.24 MB."""
    size = bits / 8
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def time_text(theft: Theft) -> str:
    """How long the theft takes at the caps, rounded down."""
    if not theft.is_possible:
        return "never under this budget"
    days = theft.days_at_caps
    if days is None:
        return "not limited in time"
    if days >= 2 * DAYS_PER_YEAR:
        return f"{float(Fraction(int(days * 10), 10 * DAYS_PER_YEAR)):,.1f} years"
    return f"{float(int(days * 10)) / 10:,.1f} days"
