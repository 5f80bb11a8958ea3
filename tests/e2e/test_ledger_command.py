"""`weir ledger`: what an operator sees of the ledger and does to it by hand, also while a gateway uses it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from gateway.ledger.sqlite import SqliteLedger
from gateway.ports import AccountLimit, Wanted
from tests.e2e.conftest import Start
from tests.e2e.processes import REPOSITORY, environment, policy, weir

MODEL, ALICE = "model:m/lifetime/ever", "tenant:alice/lifetime/ever"
ALICE_BITS = 8 * 50_000_000
EXACT = 2**53 + 1  # no float holds it

Weir = Callable[..., CompletedProcess[str]]


@pytest.fixture
def rules(tmp_path: Path) -> dict[str, Any]:
    return policy("http://127.0.0.1:1", tmp_path)


@pytest.fixture
def ledger(tmp_path: Path, rules: dict[str, Any]) -> Weir:
    """Run `weir ledger` on the policy of the test, whose ledger exists and knows its limits."""
    path = tmp_path / "weir.yaml"

    def run(*arguments: str, status: int = 0) -> CompletedProcess[str]:
        path.write_text(yaml.safe_dump(rules))
        done = weir("ledger", arguments[0], "--policy", str(path), *arguments[1:])
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    asyncio.run(SqliteLedger(tmp_path / "ledger.db").close())
    run("limits", "--apply")
    return run


def account(ledger: Weir, name: str) -> Mapping[str, Any]:
    (found,) = [a for a in json.loads(ledger("show", "--all", "--json").stdout)["accounts"] if a["account"] == name]
    return found


def lines(ledger: Weir, kind: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, ledger("export").stdout.splitlines()) if line["type"] == kind]


async def use(directory: Path, act: Callable[[SqliteLedger], Any]) -> None:
    """What a gateway did before."""
    opened = SqliteLedger(directory / "ledger.db")
    await act(opened)
    await opened.close()


def test_a_grant_by_hand_is_debited_kept_with_its_reason_and_never_given_back(ledger: Weir) -> None:
    said = ledger("grant", ALICE, "1000", "--reason", "mailed [by hand]").stdout
    assert "debited 1,000 bits (125 B)" in said
    assert f"{ALICE_BITS - 1000:,} bits" in said
    assert account(ledger, ALICE)["debited_bits"] == 1000
    (lease,) = lines(ledger, "lease")
    assert (lease["bits"], lease["returned_bits"]) == ({ALICE: 1000}, {})
    assert lease["holder"].startswith("operator:")
    assert "mailed [by hand]" in lease["holder"]
    assert "mailed [by hand]" in ledger("show").stdout


def test_a_grant_over_the_limit_is_refused_with_what_remains_and_debits_nothing(ledger: Weir) -> None:
    ledger("grant", ALICE, "1000", "--reason", "first")
    refused = ledger("grant", ALICE, str(ALICE_BITS), "--reason", "too much", status=1)
    assert f"{ALICE_BITS - 1000:,} bits" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert account(ledger, ALICE)["debited_bits"] == 1000
    ledger("grant", ALICE, str(ALICE_BITS - 1000), "--reason", "the rest")


def test_a_grant_of_a_sliding_window_is_spent_in_the_step_of_now(ledger: Weir, rules: dict[str, Any]) -> None:
    rules["models"]["m"]["budgets"].append({"window": "sliding 1d", "bytes": "1MB"})
    ledger("limits", "--apply")
    ledger("grant", "model:m/sliding 1d", "4000000", "--reason", "half")
    series = account(ledger, "model:m/sliding 1d")
    assert (series["debited_bits"], series["limit_bits"]) == (4_000_000, 8_000_000)
    (lease,) = lines(ledger, "lease")
    (step,) = lease["bits"]
    assert account(ledger, step)["series"] == "model:m/sliding 1d"


def test_a_grant_does_not_bring_limits_of_the_policy_into_force(ledger: Weir, rules: dict[str, Any]) -> None:
    rules["models"]["m"]["budgets"].append({"window": "sliding 1d", "bytes": "1MB"})
    ledger("limits", "--apply")
    rules["models"]["m"]["budgets"][1]["bytes"] = "2MB"
    rules["tenants"]["alice"]["budget"]["bytes"] = "60MB"
    ledger("grant", "model:m/sliding 1d", "9000000", "--reason", "over", status=1)
    ledger("grant", ALICE, str(ALICE_BITS + 1), "--reason", "over", status=1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("nobody", "1", "--reason", "x"),
        (ALICE, "-1", "--reason", "x"),
        (ALICE, "1e6", "--reason", "x"),
        (ALICE, str(2**63), "--reason", "x"),
        (ALICE, "1", "--reason", " "),
        (ALICE, "1"),
    ],
)
def test_a_grant_that_makes_no_sense_is_refused(ledger: Weir, arguments: tuple[str, ...]) -> None:
    ledger("grant", *arguments, status=1 if arguments[0] == "nobody" else 2)
    assert not lines(ledger, "lease")


def test_limits_are_lowered_on_request_and_raised_only_when_that_is_said_twice(
    ledger: Weir, rules: dict[str, Any]
) -> None:
    rules["tenants"]["alice"]["budget"]["bytes"] = "60MB"
    assert "raised" in ledger("limits").stdout
    assert f"raises {ALICE}" in ledger("limits", "--apply", status=1).stderr
    assert account(ledger, ALICE)["limit_bits"] == ALICE_BITS
    assert ALICE in ledger("limits", "--apply", "--yes").stderr
    assert account(ledger, ALICE)["limit_bits"] == 480_000_000
    rules["tenants"]["alice"]["budget"]["bytes"] = "1MB"
    assert "lowered" in ledger("limits", "--apply").stdout
    (shown,) = [a for a in json.loads(ledger("limits", "--json").stdout) if a["account"] == ALICE]
    assert shown == {"account": ALICE, "policy_bits": 8_000_000, "ledger_bits": 8_000_000}


def test_a_frozen_account_is_shown_refuses_and_is_thawed_with_what_was_lost(ledger: Weir, tmp_path: Path) -> None:
    asyncio.run(use(tmp_path, lambda opened: opened.freeze({ALICE: 7})))
    assert "FROZEN" in ledger("show").stdout
    assert "frozen" in ledger("grant", ALICE, "1", "--reason", "x", status=1).stderr
    said = ledger("thaw", ALICE, "--lost", "5000").stdout
    assert "0 bits (0 B) before, 5,000 bits (625 B) now" in said
    after = account(ledger, ALICE)
    assert (after["frozen"], after["debited_bits"], after["fence"]) == (False, 5000, 8)
    assert "not frozen" in ledger("thaw", ALICE, "--lost", "5000", status=1).stderr
    assert "no account" in ledger("thaw", "nobody", "--lost", "1", status=1).stderr
    assert account(ledger, ALICE)["debited_bits"] == 5000


def test_accounts_of_the_past_are_shown_on_request_and_after_those_of_now(ledger: Weir, tmp_path: Path) -> None:
    past = AccountLimit(account="a:past/1d/1", limit_bits=EXACT)
    asyncio.run(use(tmp_path, lambda opened: opened.register([past])))
    shown = ledger("show").stdout
    assert past.account not in shown
    assert "1 more" in shown
    names = [a["account"] for a in json.loads(ledger("show", "--all", "--json").stdout)["accounts"]]
    assert names == [MODEL, ALICE, "tenant:bob/lifetime/ever", past.account]


def test_an_export_has_everything_exactly_page_after_page(ledger: Weir, tmp_path: Path) -> None:
    async def fill(opened: SqliteLedger) -> None:
        await opened.register([AccountLimit(account="big", limit_bits=2**62)])
        wanted = {"big": Wanted(least_bits=EXACT, most_bits=EXACT)}
        names = [f"l{number:04}" for number in range(500)]
        await asyncio.gather(*(opened.grant(lease=name, holder="h", wanted=wanted) for name in names))
        small = {"big": Wanted(least_bits=1, most_bits=1)}
        await asyncio.gather(*(opened.grant(lease=f"m{n}", holder="h", wanted=small) for n in range(1600)))
        await opened.close_lease(lease="l0000", holder="h", returned={"big": 1})

    asyncio.run(use(tmp_path, fill))
    leases = lines(ledger, "lease")
    assert len({lease["lease"] for lease in leases}) == len(leases) == 2100
    assert (leases[0]["bits"], leases[0]["returned_bits"]) == ({"big": EXACT}, {"big": 1})
    (big,) = [line for line in lines(ledger, "account") if line["account"] == "big"]
    assert big["debited_bits"] == 500 * EXACT + 1600 - 1
    (held,) = json.loads(ledger("show", "--json").stdout)["open_leases"]
    assert (held["holder"], held["leases"], held["bits"]) == ("h", 2099, 499 * EXACT + 1600)
    command = f"{sys.executable} -m gateway ledger export --policy {tmp_path / 'weir.yaml'} | head -n 1"
    head = subprocess.run(
        ["bash", "-c", command], check=False, env=environment(), cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (head.stdout.count("\n"), head.stderr) == (1, "")


def test_a_ledger_that_is_not_there_is_not_made(tmp_path: Path, rules: dict[str, Any]) -> None:
    for text, said in (("memory", "weir status"), (f"sqlite:{tmp_path}/none.db", "no ledger yet")):
        rules["ledger"] = text
        (tmp_path / "weir.yaml").write_text(yaml.safe_dump(rules))
        done = weir("ledger", "show", "--policy", str(tmp_path / "weir.yaml"))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert said in done.stderr
    assert not (tmp_path / "none.db").exists()


def test_a_file_that_is_no_ledger_and_a_policy_with_mistakes_are_said_in_a_line(
    tmp_path: Path, rules: dict[str, Any]
) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database at all, but text\n" * 200)
    (tmp_path / "weir.yaml").write_text(yaml.safe_dump(rules))
    done = weir("ledger", "show", "--policy", str(tmp_path / "weir.yaml"))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "ledger.db" in done.stderr
    assert weir("ledger", "show", "--policy", str(tmp_path / "missing.yaml")).returncode == 78


def test_the_help_names_every_command() -> None:
    said = weir("ledger", "--help").stdout
    for name in ("show", "grant", "limits", "thaw", "export"):
        assert f"weir ledger {name}" in said or f"    {name} " in said
        assert "--policy" in weir("ledger", name, "--help").stdout


def test_a_running_gateway_counts_what_is_granted_by_hand_and_serves_on(start: Start) -> None:
    gateway = start()
    done = threading.Event()
    statuses: list[int] = []

    def ask() -> None:
        while not done.is_set():
            statuses.append(gateway.ask().status)

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    for _ in range(3):
        assert weir("ledger", "grant", ALICE, "1000000", "--reason", "x", "--policy", str(gateway.path)).returncode == 0
        assert weir("ledger", "show", "--policy", str(gateway.path)).returncode == 0
    done.set()
    for thread in asking:
        thread.join()
    assert set(statuses) == {200}
    before = gateway.idle().used_bits()
    assert weir("ledger", "grant", ALICE, "777", "--reason", "x", "--policy", str(gateway.path)).returncode == 0
    assert gateway.used_bits() == before + 777
    assert gateway.stop() == 0
