"""The compose file's database, without its container: its settings and its first script, on a real server."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from gateway.ledger.postgres import PostgresLedger
from gateway.ports import AccountLimit, Granted, Wanted
from tests.postgres import Postgres, binaries, new_directory

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def server():
    """As the compose file starts it."""
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["ledger"]
    assert "--data-checksums" in service["environment"]["POSTGRES_INITDB_ARGS"]
    program, *options = service["command"]
    assert program == "postgres"
    assert options[::2] == ["-c"] * len(options[1::2])
    directory = new_directory()
    server = Postgres(directory, settings=dict(option.split("=", 1) for option in options[1::2])).create().start()
    environment = {
        **os.environ,
        "PATH": f"{binaries()}:{os.environ['PATH']}",
        "PGHOST": "127.0.0.1",
        "PGPORT": str(server.port),
        "POSTGRES_PASSWORD": "it's a secret",
    }
    subprocess.run([DEPLOY / "ledger-init.sh"], env=environment, check=True, capture_output=True, text=True)
    yield server
    server.end()
    shutil.rmtree(directory, ignore_errors=True)


async def test_the_database_of_the_compose_file_is_one_that_a_gateway_relies_on(server):
    said = []
    ledger = PostgresLedger(server.url("weir", user="weir"), log=said.append)
    await ledger.register([AccountLimit(account="a", limit_bits=10)])
    wanted = {"a": Wanted(least_bits=1, most_bits=1)}
    assert isinstance(await ledger.grant(lease="l", holder="h", wanted=wanted), Granted)
    await ledger.close()
    assert said == []  # checksums are on
    roles = server.psql(
        "SELECT rolname, rolsuper, rolpassword IS NULL FROM pg_authid WHERE rolname IN ('weir', 'postgres') ORDER BY 1"
    )
    assert roles == ["postgres|t|t", "weir|f|f"]
