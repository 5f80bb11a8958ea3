"""The operating licence of a running gateway: made, signed and installed as its operators would, and felt by its clients."""

from __future__ import annotations

import asyncio
import copy
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.backend import Backend, Exchange, rest, say, text_event
from tests.e2e.conftest import Start
from tests.e2e.processes import Gateway, until, weir
from tests.e2e.wire import chat, request

ONE_PROCESS: list[str] = []
WORKERS = ["--workers", "2"]
SIGNERS = ("anna", "boris", "cleo")
WITHIN_S = 2.0  # what operations.md promises


class Desk:
    """Where licences are made: signers' keys, and a policy that names them."""

    def __init__(self, directory: Path, start: Start) -> None:
        self.directory = directory
        self._start = start
        self.keys = [self.make(f"{name}.key", "key", name, "--out") for name in SIGNERS]
        self.gateway: Gateway
        self._files = 0

    def make(self, file: str, *arguments: str) -> str:
        done = weir("licence", *arguments, str(self.directory / file))
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def rules(self, rules: dict[str, Any]) -> None:
        file = str(self.directory / "licence.json")
        rules["licence"] = {"file": file, "keys": self.keys, "threshold": 2, "gateway": "gate-1"}

    def open(self, arguments: list[str]) -> Gateway:
        self.gateway = self._start(self.rules, ready=False, arguments=arguments)
        return self.gateway

    def signed(self, expires: str, *extra: str, by: tuple[str, ...] = ("anna", "cleo")) -> str:
        self._files += 1
        file = f"next-{self._files}.json"
        policy = ["--policy", str(self.gateway.path)]
        self.make(file, "new", *policy, "--expires", expires, *extra, "--out")
        for name in by:
            self.make(file, "sign", "--key", str(self.directory / f"{name}.key"))
        return str(self.directory / file)

    def install(self, file: str) -> None:
        done = weir("licence", "install", file, "--policy", str(self.gateway.path))
        assert done.returncode == 0, done.stderr

    def renew(self, expires: str = "1h") -> None:
        self.install(self.signed(expires))

    def ready(self) -> Gateway:
        until(lambda: self.gateway.metric("weir_licence_ok") == 1, what="all processes see it", seconds=WITHIN_S)
        until(lambda: self.gateway.admin("/readyz")[0] == 200, what="the gateway is ready")
        return self.gateway


@pytest.fixture
def desk(tmp_path: Path, start: Start) -> Desk:
    return Desk(tmp_path, start)


def kinds(gateway: Gateway) -> list[str]:
    return [leaf["type"] for leaf in gateway.audit() if leaf["type"].startswith("licence_")]


@pytest.mark.parametrize("arguments", [ONE_PROCESS, WORKERS], ids=["one process", "workers"])
def test_without_a_licence_nothing_is_asked_of_a_backend_and_installing_one_opens_the_gate(
    backend: Backend, desk: Desk, arguments: list[str]
) -> None:
    gateway = desk.open(arguments)
    status, why = gateway.admin("/readyz")
    assert status == 503
    assert why.startswith(b"no operating licence is in force: missing: there is no ")
    refused = gateway.ask()
    assert (refused.status, refused.error["code"], refused.header("Retry-After")) == (503, "licence_not_in_force", "5")
    assert backend.exchanges == []
    assert gateway.get("/v1/models").status == 200  # what the policy answers is no egress
    assert gateway.metric("weir_licence_ok") == 0
    desk.install(desk.signed("1h"))
    installed_s = time.monotonic()
    until(lambda: gateway.ask().status == 200, what="it serves", seconds=WITHIN_S)
    assert time.monotonic() - installed_s < WITHIN_S
    assert desk.ready().metric("weir_licence_ok") == 1
    assert 0 < gateway.metric("weir_licence_expires_timestamp_seconds") - time.time() <= 3600
    until(lambda: kinds(gateway) == ["licence_lapsed", "licence_installed"], what="both are on the record, once")
    assert next(leaf for leaf in gateway.audit() if leaf["type"] == "licence_installed")["signers"] == ["anna", "cleo"]


@pytest.mark.parametrize("arguments", [ONE_PROCESS, WORKERS], ids=["one process", "workers"])
def test_at_its_end_open_streams_are_cut_with_an_error_and_nothing_more_is_admitted(
    backend: Backend, desk: Desk, arguments: list[str]
) -> None:
    gateway = desk.open(arguments)
    desk.renew("8s")
    desk.ready()
    ends_s = gateway.metric("weir_licence_expires_timestamp_seconds")

    async def for_ever(exchange: Exchange) -> None:
        if not exchange.request.json["stream"]:
            await exchange.for_ever()
        await exchange.begin()
        while True:
            await exchange.chunk(text_event("And on it goes. "))
            await asyncio.sleep(0.05)

    backend.script = for_ever
    with gateway.connect() as streaming, gateway.connect() as whole:
        streaming.send(request(body=chat(stream=True), key=gateway.key))
        answer = streaming.head()
        whole.send(request(body=chat(), key=gateway.key))
        answer.body = b"".join(streaming.pieces(answer))
        cut_s = time.time()
        assert not answer.complete
        assert answer.events[-1]["error"]["code"] == "licence_not_in_force"
        assert answer.text.startswith("And on it goes. ")
        assert -0.5 < cut_s - ends_s < 1.5
        unstreamed = whole.response()
        assert (unstreamed.status, unstreamed.error["code"]) == (503, "licence_not_in_force")
    assert gateway.ask().status == 503
    closed = gateway.leaf("closed", answer)
    assert (closed["outcome"], closed["text_bytes"]) == ("licence", len(answer.text))
    assert gateway.admin("/readyz")[1].startswith(b"no operating licence is in force: expired: it ended at ")
    assert all(exchange.cancelled.wait(5) for exchange in backend.exchanges[-2:])
    desk.renew()
    backend.script = say("Again.")
    until(lambda: gateway.ask().status == 200, what="it serves again", seconds=WITHIN_S)


@pytest.mark.parametrize("arguments", [ONE_PROCESS, WORKERS], ids=["one process", "workers"])
def test_renewals_under_load_drop_no_request(backend: Backend, desk: Desk, arguments: list[str]) -> None:
    # Arrange: eight clients without a pause, and an answer that is open all the time.
    gateway = desk.open(arguments)
    renewals = [desk.signed(expires, "--version", str(n)) for n, expires in ((2, "60s"), (3, "90s"), (4, "1h"))]
    desk.renew("10s")
    desk.ready()
    first_end_s = gateway.metric("weir_licence_expires_timestamp_seconds")
    gate = backend.gate()

    async def held(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(text_event("Held until the test lets go. "))
        await gate.passed()
        await rest(exchange, ["And now it has."])

    backend.script = held
    streaming = gateway.connect()
    streaming.send(request(body=chat(stream=True), key=gateway.key))
    answer = streaming.head()
    backend.script = say("Short.")
    results: Counter[object] = Counter()
    enough = threading.Event()

    def ask_on() -> None:
        while not enough.is_set():
            try:
                got = gateway.ask(stream=True)
                results[(got.status, got.complete, got.text)] += 1
            except OSError as fault:
                results[repr(fault)] += 1

    clients = [threading.Thread(target=ask_on) for _ in range(8)]
    for client in clients:
        client.start()

    # Act: three renewals, until the first licence is long over.
    for renewal in renewals:
        desk.install(renewal)
        time.sleep(1.5)
    until(lambda: time.time() > first_end_s + 1.5, what="the first licence is over", seconds=30)
    enough.set()
    for client in clients:
        client.join()
    gate.open()
    answer.body = b"".join(streaming.pieces(answer))

    # Assert
    assert set(results) == {(200, True, "Short.")}, results
    assert results.total() > 20
    assert answer.complete
    assert answer.text == "Held until the test lets go. And now it has."
    installed = [leaf["version"] for leaf in gateway.audit() if leaf["type"] == "licence_installed"]
    assert installed == [1, 2, 3, 4]


def test_the_file_taken_away_stops_egress(desk: Desk) -> None:
    gateway = desk.open(ONE_PROCESS)
    desk.renew()
    desk.ready()
    (desk.directory / "licence.json").unlink()
    until(lambda: gateway.ask().status == 503, what="it stops", seconds=WITHIN_S + 1)


def test_a_rolled_back_file_is_refused_even_after_a_restart(desk: Desk) -> None:
    gateway = desk.open(ONE_PROCESS)
    desk.renew()
    old = (desk.directory / "licence.json").read_bytes()
    desk.ready()
    desk.renew()
    until(lambda: kinds(gateway)[-2:] == ["licence_installed"] * 2, what="the second is in force")
    gateway.stop()
    (desk.directory / "licence.json").write_bytes(old)
    gateway.start(ready=False)
    assert gateway.ask().status == 503
    why = b"no operating licence is in force: rolled_back: it is version 1, and version 2 was in force here already\n"
    assert gateway.admin("/readyz")[1] == why


@pytest.mark.parametrize("arguments", [ONE_PROCESS, WORKERS], ids=["one process", "workers"])
def test_a_changed_policy_takes_a_licence_of_its_own_and_then_no_request_is_dropped(
    desk: Desk, arguments: list[str]
) -> None:
    gateway = desk.open(arguments)
    desk.renew()
    desk.ready()
    raised = copy.deepcopy(gateway.rules)
    raised["tenants"]["alice"]["budget"]["bytes"] = "60MB"
    gateway.write(raised)
    gateway.signal(signal.SIGHUP)
    until(lambda: gateway.metric("weir_config_last_reload_successful") == 0, what="the reload is refused")
    refusal = next(line for line in gateway.log() if line["event"] == "policy reload refused")
    assert "does not hold for this policy: it is for policy" in refusal["mistakes"][0]
    assert gateway.ask().status == 200
    assert gateway.account("tenant", "alice")["limit_bits"] == 8 * 50_000_000
    desk.renew()  # for the policy in the file
    time.sleep(WITHIN_S + 0.5)
    assert gateway.ask().status == 200  # the one in force stays so until the policy is taken
    gateway.signal(signal.SIGHUP)
    until(lambda: gateway.account("tenant", "alice")["limit_bits"] == 8 * 60_000_000, what="the policy is taken")
    assert gateway.ask().status == 200
    assert "licence_lapsed" not in kinds(gateway)[1:]


def test_a_reload_cannot_take_the_licence_out_of_the_policy(desk: Desk) -> None:
    gateway = desk.open(ONE_PROCESS)
    desk.renew()
    desk.ready()
    without = {name: value for name, value in gateway.rules.items() if name != "licence"}
    gateway.write(without)
    gateway.signal(signal.SIGHUP)
    until(lambda: gateway.metric("weir_config_last_reload_successful") == 0, what="the reload is refused")
    refusal = next(line for line in gateway.log() if line["event"] == "policy reload refused")
    assert refusal["mistakes"][0].endswith("changing licence takes a restart")


Wrong = Callable[[Desk], str]

REFUSED: dict[str, tuple[Wrong, str]] = {
    "under-signed": (lambda desk: desk.signed("1h", by=("boris",)), "under_signed: 1 of the policy's keys have signed (boris)"),
    "another gateway": (lambda desk: desk.signed("1h", "--gateway", "gate-2"), "other_gateway: it is for gate-2, and this is gate-1"),
    "an old version": (lambda desk: desk.signed("1h", "--version", "1"), "rolled_back: "),
}  # fmt: skip


def test_install_refuses_what_the_gateway_would_refuse_and_changes_nothing(desk: Desk) -> None:
    gateway = desk.open(ONE_PROCESS)
    desk.renew()
    desk.ready()
    desk.renew()
    before = (desk.directory / "licence.json").read_bytes()
    for wrong, reason in REFUSED.values():
        done = weir("licence", "install", wrong(desk), "--policy", str(gateway.path))
        assert done.returncode == 1
        assert reason in done.stderr
    twice = weir("licence", "sign", "--key", str(desk.directory / "anna.key"), desk.signed("1h"))
    assert (twice.returncode, "two signatures of one key count once" in twice.stderr) == (1, True)
    for_this_policy = desk.signed("1h")
    changed = copy.deepcopy(gateway.rules)
    changed["tenants"]["bob"]["streams_max"] = 5
    gateway.write(changed)
    done = weir("licence", "install", for_this_policy, "--policy", str(gateway.path))
    assert (done.returncode, "other_policy: it is for policy" in done.stderr) == (1, True)
    assert (desk.directory / "licence.json").read_bytes() == before


def test_show_says_who_signed_and_what_a_gateway_would_say(desk: Desk) -> None:
    gateway = desk.open(ONE_PROCESS)
    one = weir("licence", "show", desk.signed("90m", by=("boris",)), "--policy", str(gateway.path))
    assert one.returncode == 0, one.stderr
    assert "licence version 1\n  for gateways  gate-1\n" in one.stdout
    assert "  anna                 -\n  boris                signed\n" in one.stdout
    assert "1 of 2 signatures that the policy asks for\nnot in force: under_signed: " in one.stdout
    assert "ends in 89 min" in one.stdout
    desk.renew("48h")
    installed = weir("licence", "show", "--policy", str(gateway.path))
    assert "not in force" not in installed.stdout
    assert "ends in 48.0 h" in installed.stdout


def test_the_commands_refuse_what_would_destroy_or_mislead(desk: Desk, tmp_path: Path) -> None:
    gateway = desk.open(ONE_PROCESS)
    policy = ["--policy", str(gateway.path)]
    cases = [
        (["key", "anna", "--out", str(tmp_path / "anna.key")], 1, "there is a file already"),
        (["key", "a b"], 1, "A name has 1 to 64"),
        (["new", *policy, "--out", str(tmp_path / "anna.key")], 1, "File exists"),
        (["new", *policy, "--expires", "soon", "--out", str(tmp_path / "x")], 1, "--expires: 'soon'"),
        (["new", *policy, "--version", "0", "--out", str(tmp_path / "x")], 1, "--version: write a number"),
        (["new", *policy, "--gateway", "a b", "--out", str(tmp_path / "x")], 1, "A name has 1 to 64"),
        (["new", "--policy", str(tmp_path / "none.yaml"), "--out", "x"], 1, "No such file"),
        (["sign", "--key", str(tmp_path / "anna.key"), str(gateway.path)], 1, "this is no licence"),
        (["sign", "--key", str(gateway.path), str(gateway.path)], 1, "not the private key of a weir signer"),
        (["show", *policy], 1, "No such file"),
        (["frobnicate"], 2, "invalid choice"),
    ]
    for arguments, status, message in cases:
        done = weir("licence", *arguments)
        assert (done.returncode, message in done.stderr) == (status, True), (arguments, done.stderr)
        assert "Traceback" not in done.stderr
    gateway.path.write_text("listen: x\n")
    assert weir("licence", "show", *policy).returncode == 78


def test_one_key_may_lower_a_budget_and_not_raise_it(desk: Desk) -> None:
    # Arrange: a licensed gateway, and its policy with other figures.
    gateway = desk.open(ONE_PROCESS)
    desk.renew()
    desk.ready()
    licensed = desk.directory / "licensed.yaml"
    licensed.write_bytes(gateway.path.read_bytes())
    key = ["--key", str(desk.directory / "boris.key")]
    amend = ["licence", "amend", "--licensed", str(licensed), "--policy", str(gateway.path), *key]

    def set_bytes(figure: str) -> None:
        rules = copy.deepcopy(gateway.rules)
        rules["tenants"]["alice"]["budget"]["bytes"] = figure
        gateway.write(rules)

    # Act, assert: up is refused by the command, down is taken by the gateway.
    set_bytes("60MB")
    refused = weir(*amend)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "which takes a licence: tenants.alice.budgets" in refused.stderr
    set_bytes("40MB")
    weir_made = weir("licence", "key", "mallory", "--out", str(desk.directory / "mallory.key"))
    assert weir_made.returncode == 0
    stranger = weir(*amend[:-1], str(desk.directory / "mallory.key"))
    assert (stranger.returncode, "none of the keys that the policy names" in stranger.stderr) == (1, True)
    done = weir(*amend)
    assert done.returncode == 0, done.stderr
    gateway.signal(signal.SIGHUP)
    until(
        lambda: gateway.account("tenant", "alice")["limit_bits"] == 8 * 40_000_000, what="the lower limit is in force"
    )
    assert gateway.ask().status == 200
    until(
        lambda: kinds(gateway) == ["licence_lapsed", "licence_installed", "licence_amended"], what="it is on the record"
    )
    assert "not in force" not in weir("licence", "show", "--policy", str(gateway.path)).stdout
    gateway.restart()
    assert gateway.ask().status == 200
