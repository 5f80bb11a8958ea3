"""A whole gateway on PostgreSQL, whose server goes away and comes back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.backend import Backend, say
from tests.e2e.conftest import Start
from tests.e2e.processes import Gateway, policy, until, weir
from tests.postgres import Postgres, free_port, new_directory


@pytest.fixture
def server() -> Iterator[Postgres]:
    directory = new_directory()
    server = Postgres(directory).create().start()
    yield server
    server.end()
    shutil.rmtree(directory, ignore_errors=True)


def on(url: str) -> Callable[[dict[str, Any]], None]:
    """Have the ledger at `url`, and budgets of which a lease may take enough for many answers."""

    def change(rules: dict[str, Any]) -> None:
        rules["ledger"] = url
        rules["models"]["m"]["weights"] = {"parameters": 10**13}
        rules["tenants"]["alice"]["budget"]["bytes"] = "500GB"

    return change


def test_gateways_on_one_database_go_on_while_it_is_away_and_need_no_restart(
    backend: Backend, start: Start, server: Postgres
) -> None:
    # Arrange: two gateways, one ledger.
    backend.script = say("Hello. " * 20)
    gateways = [start(on(server.url())) for _ in range(2)]
    for gateway in gateways:
        assert gateway.ask().status == 200
        gateway.idle()
    assert server.psql("SELECT count(DISTINCT holder) FROM weir.lease") == ["2"]
    spent_bits = sum(gateway.metric("weir_charged_bits_total", code="raw") for gateway in gateways)

    # Act: no database. What was granted before serves on.
    server.kill()
    for gateway in gateways:
        assert gateway.ask().status == 200
        assert gateway.admin("/readyz") == (503, b"the ledger does not answer\n")
    server.start()

    # Assert
    for gateway in gateways:
        until(lambda gateway=gateway: gateway.admin("/readyz")[0] == 200, what="the ledger is heard of again")
        assert gateway.ask().status == 200
    [debited_bits] = server.psql("SELECT max(debited_bits) FROM weir.account")
    assert int(debited_bits) >= spent_bits > 0
    assert [gateway.stop() for gateway in gateways] == [0, 0]


def test_the_logs_of_all_gateways_add_up_to_their_common_ledger_and_one_alone_says_what_is_elsewhere(
    backend: Backend, start: Start, server: Postgres
) -> None:
    # Arrange: one gateway that stops, and one that is killed and has settled it since.
    gateways = [start(on(server.url())) for _ in range(2)]
    for gateway in gateways:
        assert gateway.ask().status == 200
        gateway.idle()
    gateways[1].kill9()
    gateways[1].start()
    assert [gateway.stop() for gateway in gateways] == [0, 0]
    directories = [str(gateway.directory / "audit") for gateway in gateways]

    def fold(*names: str) -> list[dict[str, Any]]:
        done = weir("audit", "fold", *names, "--policy", str(gateways[0].path), "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        accounts: list[dict[str, Any]] = json.loads(done.stdout)["accounts"]
        return accounts

    # Act
    together, alone = fold(*directories), fold(directories[0])

    # Assert
    assert all((row["difference_bits"], row["elsewhere_bits"]) == (0, 0) for row in together)
    assert all(row["difference_bits"] == 0 for row in alone)
    assert max(row["elsewhere_bits"] for row in alone) > 0


def test_a_gateway_whose_database_is_away_at_the_start_says_so_and_ends(backend: Backend, tmp_path: Path) -> None:
    rules = policy(backend.url, tmp_path) | {"ledger": f"postgresql://weir@127.0.0.1:{free_port()}/weir"}
    gateway = Gateway(tmp_path, rules)
    done = weir("serve", "--policy", str(gateway.path))
    assert done.returncode == 1
    assert "the ledger's server" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_ledger_commands_work_on_a_database(start: Start, server: Postgres) -> None:
    gateway = start(on(server.url()))
    assert gateway.ask().status == 200
    shown = weir("ledger", "show", "--policy", str(gateway.path))
    assert shown.returncode == 0, shown.stderr
    account = server.psql("SELECT id FROM weir.account ORDER BY debited_bits DESC, id LIMIT 1")[0]
    server.psql(f"UPDATE weir.account SET frozen_fence = 1000 WHERE id = '{account}'")
    thawed = weir("ledger", "thaw", "--policy", str(gateway.path), account, "--lost", "800")
    assert thawed.returncode == 0, thawed.stderr
    assert server.psql(f"SELECT fence, frozen_fence FROM weir.account WHERE id = '{account}'") == ["1001|"]
