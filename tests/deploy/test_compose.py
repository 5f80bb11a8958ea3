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


COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
ENGINES = [name for name in COMPOSE["services"] if name.startswith("inference")]


@pytest.mark.parametrize("name", [*ENGINES, "doctor"])
def test_an_engine_has_no_network_and_nothing_of_the_host(name):
    service = COMPOSE["services"][name]
    assert service["network_mode"] == "none"
    assert (
        not {"networks", "ports", "privileged", "pid", "cap_add", "devices", "secrets", "extra_hosts"} & service.keys()
    )
    assert service["volumes"] == ["backend:/run/weir-backend"]
    assert service["user"] == "64101:64102"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_gpu_is_reserved_for_the_engine_that_uses_it():
    (device,) = COMPOSE["services"]["inference-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert "--device cuda" in COMPOSE["services"]["inference-gpu"]["command"][-1]


def test_nothing_but_the_gateway_shares_a_volume_with_an_engine():
    users = {
        name
        for name, service in COMPOSE["services"].items()
        if "backend:/run/weir-backend" in service.get("volumes", [])
    }
    assert users == {"gateway", "doctor", *ENGINES}


def test_ports_are_published_on_loopback_alone():
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert not any(port.endswith(":9090") for port in published)


def test_without_a_profile_only_the_database_starts():
    assert [name for name, service in COMPOSE["services"].items() if "profiles" not in service] == ["ledger"]


def test_the_policy_has_the_addresses_that_the_compose_file_gives():
    rules = yaml.safe_load((DEPLOY / "compose-policy.yaml").read_text())
    address = COMPOSE["services"]["gateway"]["networks"]["admin"]["ipv4_address"]
    assert rules["admin"] == f"{address}:9090"
    assert COMPOSE["networks"]["admin"]["internal"] is True
    (model,) = rules["models"].values()
    assert model["upstream"].removeprefix("unix:").startswith("/run/weir-backend/")


def test_what_the_compose_file_mounts_is_there():
    mounted = {
        volume.split(":")[0] for service in COMPOSE["services"].values() for volume in service.get("volumes", [])
    }
    files = {path for path in mounted if path.startswith("./")}
    assert {path for path in files if not (DEPLOY / path).exists()} == set()
