"""The `weir` command as an operator types it."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.e2e.backend import Backend, say
from tests.e2e.conftest import Start
from tests.e2e.processes import REPOSITORY, Gateway, environment, policy, until, weir

POLICIES = REPOSITORY / "deploy" / "policies"
MISTAKES = 78


def test_check_prints_what_the_sidecar_policy_promises() -> None:
    done = weir("check", str(POLICIES / "sidecar-70b.yaml"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "llama-70b: 70,000,000,000 parameters" in done.stdout
    assert re.search(r"1/100 theft \(÷100\)\s+<- this policy\s*│\s*1\.4 GB", done.stdout)
    assert "budget 1d: 6,136,986 bits" in done.stdout
    assert "tenant product: llama-70b; 80% of each budget" in done.stdout
    assert "Conditions:" in done.stdout
    assert re.search(r"^policy [0-9a-f]{64}$", done.stdout, re.MULTILINE)


def test_check_of_the_demonstrations_policy_says_which_weights_are_missing(tmp_path: Path) -> None:
    done = weir("check", str(POLICIES / "demo.yaml"), cwd=tmp_path)
    assert done.returncode == MISTAKES
    assert done.stdout == ""
    assert done.stderr.strip() == (
        f"{POLICIES / 'demo.yaml'}: models.smollm2-135m-instruct.weights:"
        " ./var/models/smollm2-135m-instruct/model.safetensors: No such file or directory"
    )


def test_check_of_the_demonstrations_policy_counts_the_real_weights(prepared_model: Path, tmp_path: Path) -> None:
    (tmp_path / "var" / "models").mkdir(parents=True)
    (tmp_path / "var" / "models" / "smollm2-135m-instruct").symlink_to(prepared_model)
    done = weir("check", str(POLICIES / "demo.yaml"), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "smollm2-135m-instruct: 134,515,008 parameters" in done.stdout
    assert "<- this policy" in done.stdout
    assert "tenant acme: smollm2-135m-instruct; 60% of each budget, may steer" in done.stdout


BROKEN = """\
listen: 127.0.0.1:{port}
admin: 127.0.0.1:{port}
models:
  m:
    upstream: https://127.0.0.1:8001
    weights: {{parameters: 1e9}}
    theft_compression: 4
    budgets:
      - {{window: 1d, time_to_theft: 30d, fraction: 10%}}
tenants:
  alice:
    keys: [sha256:zzzz]
    models: [m, n]
    share: forty
    streams_max: 0
    share: 10%
meter: [raw]
"""


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = tmp_path / "broken.yaml"
    path.write_text(BROKEN.format(port=port))
    return path


def test_check_prints_every_mistake_with_file_line_and_column(broken: Path) -> None:
    done = weir("check", str(broken))
    assert done.returncode == MISTAKES
    assert done.stdout == ""
    places = []
    for line in done.stderr.splitlines():
        found = re.fullmatch(rf"{re.escape(str(broken))}:(\d+):(\d+): .+", line)
        assert found is not None, line
        places.append((int(found.group(1)), int(found.group(2))))
    assert places == sorted(places)
    assert {line for line, _ in places} >= {2, 5, 9, 12, 13, 14, 15, 16, 17}
    assert "did you mean 'meters'" in done.stderr or "meters" in done.stderr


def test_serve_of_a_broken_policy_ends_before_it_listens(broken: Path, tmp_path: Path) -> None:
    checked = weir("check", str(broken))
    done = weir("serve", "--policy", str(broken), cwd=tmp_path)
    assert done.returncode == MISTAKES
    assert done.stderr == checked.stderr
    assert list(tmp_path.iterdir()) == [broken], "nothing was made"
    missing = weir("serve", "--policy", str(tmp_path / "missing.yaml"))
    assert missing.returncode == MISTAKES
    assert "No such file" in missing.stderr


def test_serve_says_when_its_port_is_taken(backend: Backend, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        rules = policy(backend.url, tmp_path)
        rules["listen"] = f"127.0.0.1:{taken.getsockname()[1]}"
        (tmp_path / "weir.yaml").write_text(yaml.safe_dump(rules))
        done = weir("serve", "--policy", str(tmp_path / "weir.yaml"))
    assert done.returncode == 1
    assert "in use" in done.stderr


def test_serve_says_when_its_ledger_is_no_ledger(backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database, but long enough to look at" * 100)
    (tmp_path / "weir.yaml").write_text(yaml.safe_dump(policy(backend.url, tmp_path)))
    done = weir("serve", "--policy", str(tmp_path / "weir.yaml"))
    assert done.returncode == 1
    assert "not a database" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_shows_every_account_once(gateway: Gateway) -> None:
    done = weir("status", "--admin", gateway.admin_url, "--once")
    assert (done.returncode, done.stderr) == (0, "")
    for row in ("model m", "tenant alice", "tenant bob"):
        assert row in done.stdout
    assert "lifetime" in done.stdout
    assert "days to theft" in done.stdout


def test_status_as_json_is_what_the_gateway_says(gateway: Gateway, backend: Backend) -> None:
    backend.script = say("Something to account for.")
    gateway.leaf("settled", gateway.ask())
    done = weir("status", "--admin", gateway.admin_url, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told, own = json.loads(done.stdout), gateway.status()
    assert told["now"] <= own["now"]
    assert {**told, "now": 0} == {**own, "now": 0}


def test_status_of_nothing_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for form in ("--once", "--json"):
        done = weir("status", "--admin", f"http://127.0.0.1:{port}", form)
        assert done.returncode == 1
        assert done.stdout == ""
        assert f"http://127.0.0.1:{port}: " in done.stderr
        assert "Is the gateway running" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:9090", "file:///etc/passwd", "http://127.0.0.1:notaport"])
def test_status_of_an_address_that_is_none_says_so(address: str) -> None:
    done = weir("status", "--admin", address, "--once")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert address in done.stderr


def test_status_follows_until_ctrl_c(gateway: Gateway) -> None:
    command = [sys.executable, "-m", "gateway", "status", "--admin", gateway.admin_url, "--interval", "0.1"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=pipe, stderr=pipe) as following:
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                following.wait(1.5)
        finally:
            following.send_signal(signal.SIGINT)
        out, err = following.communicate(timeout=5)
    assert (following.returncode, err) == (0, b"")
    assert b"tenant alice" in out


def test_a_new_key_works_with_the_line_that_comes_with_it(backend: Backend, start: Start) -> None:
    done = weir("keys", "new-tenant", "carol")
    assert done.returncode == 0
    key = done.stdout.strip()
    assert re.fullmatch(r"weir-[A-Za-z0-9_-]{40,}", key)
    assert key not in done.stderr
    line = done.stderr.splitlines()[-1].replace("NAME OF A MODEL", "m")

    def admit(rules: dict) -> None:
        rules["tenants"] |= yaml.safe_load(line)

    gateway = start(admit)
    assert weir("check", str(gateway.path)).returncode == 0
    assert gateway.ask(key=key).status == 200
    assert gateway.get("/v1/budget", key=key).json["tenant"] == "carol"


def test_no_two_keys_are_alike_and_bad_names_get_none() -> None:
    assert weir("keys", "new-tenant", "a").stdout != weir("keys", "new-tenant", "a").stdout
    for name in ("two words", "-x", "", "x" * 65, "é"):
        done = weir("keys", "new-tenant", "--", name)
        assert (done.returncode, done.stdout) == (2, "")


def test_the_schema_is_the_one_that_is_committed() -> None:
    done = weir("schema")
    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads((REPOSITORY / "policy" / "schema.json").read_text())


@pytest.mark.parametrize(
    "arguments",
    [[], ["up"], ["serve"], ["check"], ["status"], ["keys"], ["keys", "new-tenant"], ["schema"]],
    ids=lambda arguments: " ".join(arguments) or "weir",
)
def test_every_command_has_help(arguments: list[str]) -> None:
    done = weir(*arguments, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {' '.join(['weir', *arguments])}")
    assert len(done.stdout.splitlines()) > 5


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["keys"], ["serve", "--port", "1"], ["check", "a", "b"]])
def test_wrong_usage_is_exit_2(arguments: list[str]) -> None:
    done = weir(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: weir")


def test_the_version_is_told() -> None:
    assert re.fullmatch(r"weir \d+\.\d+\.\d+\S*\n", weir("--version").stdout)


def test_check_and_help_are_quick() -> None:
    before_s = time.monotonic()
    weir("check", str(POLICIES / "sidecar-70b.yaml"))
    assert time.monotonic() - before_s < 5


def test_logs_are_json_lines_and_hold_no_words_of_clients_or_backends(gateway: Gateway, backend: Backend) -> None:
    backend.script = say("ANSWERWORD " * 20)
    answer = gateway.ask("PROMPTWORD")
    gateway.leaf("settled", answer)
    gateway.ask(key="KEYWORD-not-a-key")
    gateway.ask("PROMPTWORD", mystery="FIELDWORD")
    text = (gateway.directory / "gateway.log").read_text()
    assert all(json.loads(line)["event"] for line in text.splitlines())
    for word in ("ANSWERWORD", "PROMPTWORD", "KEYWORD", "FIELDWORD", gateway.key):
        assert word not in text
    until(lambda: gateway.alive, what="alive")


def test_an_auditors_key_goes_into_the_policy_and_its_secret_into_a_file_of_its_own(tmp_path: Path) -> None:
    anna = weir("keys", "auditor", "anna", "--out", str(tmp_path / "anna.key"))
    boris = weir("keys", "auditor", "boris", "--algorithm", "xwing", "--out", str(tmp_path / "boris.key"))
    assert (anna.returncode, boris.returncode) == (0, 0)
    assert re.fullmatch(r"weir-auditor-x25519:anna:[A-Za-z0-9+/]{43}=\n", anna.stdout)
    rules = policy("http://127.0.0.1:1", tmp_path)
    rules["audit"]["auditors"] = [anna.stdout.strip(), boris.stdout.strip()]
    (tmp_path / "weir.yaml").write_text(yaml.safe_dump(rules))
    assert weir("check", str(tmp_path / "weir.yaml")).returncode == 0
    secret = (tmp_path / "anna.key").read_text().strip().rpartition(":")[2]
    assert secret not in anna.stdout + anna.stderr
    again = weir("keys", "auditor", "anna", "--out", str(tmp_path / "anna.key"))
    assert (again.returncode, "there is a file already" in again.stderr) == (1, True)
    assert weir("keys", "auditor", "a b").returncode == 2
