"""An engine that is shut in reaches nothing, and the doctor finds the hole when one is opened, of whatever kind.

Real packets, real rules of deploy/nftables, a real gateway. Each host is a network namespace that this test makes; where
none can be made it fails.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.namespaces import (
    ENGINE4,
    ENGINE_PROGRAM,
    ENGINE_USER,
    GATEWAY4,
    GATEWAY6,
    GATEWAY_OUTSIDE4,
    GATEWAY_USER,
    WORLD4,
    Namespace,
    Network,
    connects,
    reached,
    until_connects,
)
from tests.e2e.processes import ALICE, policy

SHARED_GROUP = 64102
NOBODY = 65534
SAID = "From behind the wall."
CHAT = """
import json, sys, urllib.request
request = urllib.request.Request(f"http://{sys.argv[1]}:8080/v1/chat/completions", method="POST",
    headers={"Authorization": f"Bearer {sys.argv[2]}", "Content-Type": "application/json"},
    data=json.dumps({"model": "m", "messages": [{"role": "user", "content": "Who is there?"}]}).encode())
print(json.load(urllib.request.urlopen(request, timeout=10))["choices"][0]["message"]["content"])
"""
LISTENER = """
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
server = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
print("listening", flush=True)
while True: server.accept()[0].close()
"""
ABSTRACT_LISTENER = """
import socket
server = socket.socket(socket.AF_UNIX); server.bind("\\0left-behind"); server.listen()
print("listening", flush=True)
while True: server.accept()
"""


def rules_for(upstream: str, directory: Path) -> Path:
    """A policy file in a directory that the gateway's user may write."""
    rules = policy(upstream, directory) | {"listen": "0.0.0.0:8080", "admin": "0.0.0.0:9090"}
    path = directory / "weir.yaml"
    path.write_text(yaml.safe_dump(rules, sort_keys=False))
    os.chown(directory, GATEWAY_USER, GATEWAY_USER)
    return path


def chat(host: Namespace, address: str) -> str:
    done = host.python("-c", CHAT, address, ALICE)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def examined(host: Namespace, *options: str, shell: str = "", timeout_s: float = 0.7, **how: Any) -> dict[str, Any]:
    """What the doctor finds in the engine's place, in a host whose /run is its own."""
    shell = shell or "mount -t tmpfs -o mode=755 none /run"
    done = host.python(
        "-m", "gateway", "doctor", "--from", "engine", "--json", "--timeout", str(timeout_s), "--socket-directory", "/run",
        *options, user=ENGINE_USER, shell=shell, **how,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] == (done.returncode == 0)
    return report


def opened(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {(finding["kind"], finding["target"]) for finding in report["findings"] if finding["verdict"] == "open"}


def closed_kinds(report: dict[str, Any]) -> set[str]:
    return {finding["kind"] for finding in report["findings"] if finding["verdict"] == "closed"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that other users reach."""
    directory = tmp_path_factory.mktemp("isolation")
    for above in (directory, *directory.parents):
        if above.owner() == "root" and above.stat().st_mode & 0o005 != 0o005 and str(above).startswith("/tmp/"):
            above.chmod(0o755)
    return directory


@pytest.fixture(scope="module")
def network(place: Path) -> Iterator[Network]:
    """Engine, gateway and world, with the rules for engines on a network of their own."""
    network = Network()
    try:
        network.engine.start(ENGINE_PROGRAM, f"{ENGINE4}:8001", user=ENGINE_USER)
        directory = place / "network"
        directory.mkdir()
        network.gateway.rules("network.nft")
        network.gateway.serve(rules_for(f"http://{ENGINE4}:8001", directory))
        until_connects(network.world, GATEWAY_OUTSIDE4, 8080)
        yield network
    finally:
        network.close()


class Hole:
    """What is let through from the engines' network, and the answers, until it is closed again."""

    def __init__(self, network: Network, match: str) -> None:
        self._gateway = network.gateway
        self._gateway.nft("insert", "rule", "inet", "weir", "from_engines", *match.split(), "accept")
        self._gateway.nft("insert", "rule", "inet", "weir", "forward", "iifname", "engines0", *match.split(), "accept")
        back = "oifname engines0 ct state established,related accept"
        self._gateway.nft("insert", "rule", "inet", "weir", "forward", *back.split())

    def __enter__(self) -> Hole:
        return self

    def __exit__(self, *_: object) -> None:
        self._gateway.rules("network.nft")


def test_a_client_in_the_world_is_answered_by_the_engine_through_the_gateway(network):
    assert chat(network.world, GATEWAY_OUTSIDE4) == SAID


def test_the_engine_reaches_nothing_and_the_doctor_says_so(network):
    report = examined(network.engine, "--target", f"tcp:{GATEWAY4}:9090", "--target", f"tcp:[{GATEWAY6}]:8080")
    assert opened(report) == set()
    assert report["ok"]
    tried = {"tcp, IPv4", "tcp, IPv6", "dns, IPv4", "dns, IPv6", "icmp, IPv4", "icmp, IPv6", "metadata", "next hop",
             "unix socket", "abstract socket", "proxy"}  # fmt: skip
    assert tried <= closed_kinds(report)
    gateways = [(address, port) for address in (GATEWAY4, GATEWAY_OUTSIDE4) for port in (8080, 9090)]
    assert reached(network.engine, *gateways, (WORLD4, 443)) == set()
    assert not connects(network.world, ENGINE4, 8001)  # nor does the world reach the engine


def test_without_rules_every_attempt_leads_out_so_that_closed_means_something(network):
    network.gateway.nft("delete", "table", "inet", "weir")
    try:
        report = examined(network.engine, "--target", f"tcp:{GATEWAY4}:9090", timeout_s=2.0)
    finally:
        network.gateway.rules("network.nft")
    found = {kind for kind, _ in opened(report)}
    assert {"tcp, IPv4", "tcp, IPv6", "udp, IPv4", "udp, IPv6", "dns, IPv4", "dns, IPv6", "icmp, IPv4", "icmp, IPv6",
            "metadata", "next hop"} == found  # fmt: skip
    assert ("tcp, IPv4", f"{GATEWAY4}:9090") in opened(report)
    assert len([1 for kind, _ in opened(report) if kind == "metadata"]) == 7
    assert not report["ok"]


@pytest.mark.parametrize(
    ("match", "found"),
    [
        ("ip daddr 1.1.1.1 tcp dport 443", {("tcp, IPv4", "1.1.1.1:443")}),
        ("ip6 daddr 2606:4700:4700::1111 tcp dport 80", {("tcp, IPv6", "[2606:4700:4700::1111]:80")}),
        ("ip daddr 8.8.8.8 udp dport 443", {("udp, IPv4", "8.8.8.8:443")}),
        ("ip6 daddr 2001:4860:4860::8888 udp dport 33434", {("udp, IPv6", "[2001:4860:4860::8888]:33434")}),
        ("ip daddr 1.1.1.1 udp dport 53", {("dns, IPv4", "1.1.1.1")}),
        ("ip6 daddr 2001:4860:4860::8888 udp dport 53", {("dns, IPv6", "2001:4860:4860::8888")}),
        ("ip daddr 8.8.8.8 tcp dport 53", {("tcp, IPv4", "8.8.8.8:53")}),
        ("ip daddr 1.1.1.1 icmp type echo-request", {("icmp, IPv4", "1.1.1.1")}),
        ("ip6 daddr 2606:4700:4700::1111 icmpv6 type echo-request", {("icmp, IPv6", "2606:4700:4700::1111")}),
        ("ip daddr 169.254.169.254 tcp dport 80", {("metadata", "169.254.169.254:80")}),
        ("ip6 daddr fd00:ec2::254 tcp dport 80", {("metadata", "[fd00:ec2::254]:80")}),
        (f"ip daddr {GATEWAY4} tcp dport 10250", {("next hop", f"{GATEWAY4}:10250")}),
    ],
    ids=[
        "tcp4",
        "tcp6",
        "udp4",
        "udp6",
        "dns4",
        "dns6",
        "dns-tcp",
        "icmp4",
        "icmp6",
        "metadata4",
        "metadata6",
        "next-hop",
    ],
)
def test_a_hole_that_is_opened_is_found_and_nothing_else_is(network, match, found):
    with Hole(network, match):
        report = examined(network.engine)
    assert opened(report) == found
    assert not report["ok"]


def test_an_admin_port_that_the_engine_can_reach_is_found(network):
    with Hole(network, f"ip daddr {GATEWAY4} tcp dport 9090"):
        report = examined(network.engine, "--target", f"tcp:{GATEWAY4}:9090", "--only-targets")
    assert opened(report) == {("tcp, IPv4", f"{GATEWAY4}:9090")}


def test_what_is_allowed_is_not_tried(network):
    with Hole(network, "ip daddr 1.1.1.1 tcp dport 443"):
        report = examined(network.engine, "--allow", "1.1.1.1:443")
    assert opened(report) == set()
    (finding,) = [
        finding for finding in report["findings"] if finding["target"] == "1.1.1.1:443" and "tcp" in finding["kind"]
    ]
    assert finding["verdict"] == "could not test"


def test_a_proxy_in_the_environment_is_found_if_it_is_there(network):
    variables = {"HTTPS_PROXY": f"http://user:secret@{WORLD4}:3128"}
    assert opened(examined(network.engine, variables=variables)) == set()
    with Hole(network, f"ip daddr {WORLD4} tcp dport 3128"):
        report = examined(network.engine, variables=variables)
    assert opened(report) == {("proxy", f"HTTPS_PROXY: {WORLD4}:3128")}
    assert "secret" not in json.dumps(report)


def test_name_servers_that_answer_are_found_directly_and_through_the_systems_resolver(network, place):
    (place / "resolv.conf").write_text("nameserver 8.8.8.8\noptions timeout:1 attempts:1\n")
    shell = f"mount --bind {place}/resolv.conf /etc/resolv.conf && mount -t tmpfs -o mode=755 none /run"
    with Hole(network, "ip daddr 8.8.8.8 udp dport 53"):
        report = examined(network.engine, shell=shell, timeout_s=3.0)
    system = {("dns, system", "example.com"), ("dns, system", "metadata.google.internal")}
    assert opened(report) == {("dns, IPv4", "8.8.8.8"), ("dns, resolv.conf", "8.8.8.8")} | system


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_a_unix_socket_that_the_engine_may_use_is_found_and_one_that_it_may_not_is_not(network, place, kind):
    def looked(directory: Path, *options: str) -> dict[str, Any]:
        return examined(network.engine, "--only-targets", *options, shell=f"mount --bind {directory} /run")

    directory = place / f"run-{int(kind)}"
    (directory / "deep").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, kind) as mine, socket.socket(socket.AF_UNIX, kind) as everybodys:
        for listener, path, mode in ((mine, "private.sock", 0o600), (everybodys, "deep/docker.sock", 0o666)):
            listener.bind(str(directory / path))
            (directory / path).chmod(mode)
            if kind != socket.SOCK_DGRAM:
                listener.listen()
        report = looked(directory)
        allowed = looked(directory, "--allow", "unix:/run/deep/docker.sock")
    assert opened(report) == {("unix socket", "/run/deep/docker.sock")}
    assert not report["ok"]
    assert opened(allowed) == set()
    assert opened(looked(directory)) == set()  # the files are there, and nobody listens


def test_an_abstract_socket_of_the_engines_network_is_found(network):
    network.engine.start(ABSTRACT_LISTENER)
    assert opened(examined(network.engine)) == {("abstract socket", "left-behind")}


def test_the_gateways_side_finds_a_backend_that_answers_where_the_policy_does_not_say(network, place):
    def report() -> dict[tuple[str, str], str]:
        arguments = ("--from", "gateway", "--json", "--timeout", "0.7", "--policy", str(place / "network/weir.yaml"))
        done = network.gateway.python("-m", "gateway", "doctor", *arguments, user=GATEWAY_USER)
        assert done.returncode in (0, 1), done.stderr
        return {(found["kind"], found["target"]): found["verdict"] for found in json.loads(done.stdout)["findings"]}

    before = report()
    assert before["backend", f"{ENGINE4}:8001"] == "right"
    assert before["backend, other ways", f"{ENGINE4}:29500"] == "closed"
    assert before["gateway", "0.0.0.0:9090"] == "right"
    assert before["admin port", "0.0.0.0:9090"] == "could not test"
    network.engine.start(LISTENER, ENGINE4, "29500")
    assert report()["backend, other ways", f"{ENGINE4}:29500"] == "open"


@pytest.fixture
def alone() -> Iterator[Network]:
    """The same hosts for tests with everything on the gateway's: engine and gateway are two users there."""
    network = Network()
    yield network
    network.close()


def test_in_one_pod_the_engines_user_reaches_nothing_and_cannot_take_the_gateways_place(alone, place):
    host, directory = alone.gateway, place / "pod"
    directory.mkdir()
    sockets = directory / "backend"
    sockets.mkdir()
    os.chown(sockets, ENGINE_USER, SHARED_GROUP)
    sockets.chmod(0o2770)
    host.rules("pod.nft")
    host.start(ENGINE_PROGRAM, f"unix:{sockets}/backend.sock", user=ENGINE_USER, group=SHARED_GROUP)
    # Before the gateway is there, and for every time that it restarts.
    host.start(LISTENER, "0.0.0.0", "9090", user=ENGINE_USER)
    host.start(LISTENER, "::", "8080", user=ENGINE_USER)
    assert connects(host, "127.0.0.1", 9090)
    assert reached(alone.world, (GATEWAY_OUTSIDE4, 9090), ("fd77:2::1", 8080)) == set()
    targets = [f"tcp:{address}:{port}" for address in ("127.0.0.1", GATEWAY_OUTSIDE4) for port in (8080, 9090)]
    options = [word for target in targets for word in ("--target", target)]
    report = examined(host, *options)
    assert opened(report) == set()
    host.nft("delete", "table", "inet", "weir")
    assert {"tcp, IPv4", "tcp, IPv6", "dns, IPv4", "icmp, IPv4", "metadata"} <= {
        kind for kind, _ in opened(examined(host))
    }


def test_in_one_pod_clients_are_answered_through_the_socket(alone, place):
    host, directory = alone.gateway, place / "pod-chat"
    directory.mkdir()
    sockets = directory / "backend"
    sockets.mkdir()
    os.chown(sockets, ENGINE_USER, SHARED_GROUP)
    sockets.chmod(0o2770)
    host.rules("pod.nft")
    host.start(ENGINE_PROGRAM, f"unix:{sockets}/backend.sock", user=ENGINE_USER, group=SHARED_GROUP)
    host.serve(rules_for(f"unix:{sockets}/backend.sock", directory), group=SHARED_GROUP)
    until_connects(alone.world, GATEWAY_OUTSIDE4, 8080)
    assert chat(alone.world, GATEWAY_OUTSIDE4) == SAID
    assert not connects(host, "127.0.0.1", 8080, user=ENGINE_USER)


def test_on_one_host_the_engines_user_answers_the_gateway_and_nobody_else(alone, place):
    host, directory = alone.gateway, place / "host"
    directory.mkdir()
    host.rules("host.nft")
    host.start(ENGINE_PROGRAM, "0.0.0.0:8001", user=ENGINE_USER)  # careless: on all interfaces
    host.start(LISTENER, "127.0.0.1", "29501", user=ENGINE_USER)
    host.start(LISTENER, "127.0.0.1", "5432")
    host.serve(rules_for("http://127.0.0.1:8001", directory))
    until_connects(alone.world, GATEWAY_OUTSIDE4, 8080)
    assert chat(alone.world, GATEWAY_OUTSIDE4) == SAID
    assert connects(host, "127.0.0.1", 8001, user=GATEWAY_USER)
    assert not connects(host, "127.0.0.1", 8001, user=NOBODY)
    assert connects(host, "127.0.0.1", 29501, user=ENGINE_USER)  # among its own parts
    assert reached(alone.world, (GATEWAY_OUTSIDE4, 8001), (GATEWAY_OUTSIDE4, 29501)) == set()
    assert connects(host, "127.0.0.1", 5432, user=NOBODY)
    targets = [f"tcp:127.0.0.1:{port}" for port in (5432, 8080, 9090)]
    report = examined(host, *(word for target in targets for word in ("--target", target)))
    assert opened(report) == set()


def test_on_one_host_clients_of_the_engines_old_port_may_be_redirected_to_the_gateway(alone, place):
    """After a redirect the packet still has its old interface in the output hook, so the rules go by address."""
    host, directory = alone.gateway, place / "redirect"
    directory.mkdir()
    host.rules("host.nft")
    host.start(ENGINE_PROGRAM, "127.0.0.1:8001", user=ENGINE_USER)
    host.serve(rules_for("http://127.0.0.1:8001", directory))
    until_connects(alone.world, GATEWAY_OUTSIDE4, 8080)
    host.nft("add", "table", "ip", "old")
    host.nft("add", "chain", "ip", "old", "output", "{ type nat hook output priority -100 ; }")
    host.nft(
        "add",
        "rule",
        "ip",
        "old",
        "output",
        "meta",
        "skuid",
        "65534",
        "tcp",
        "dport",
        "7777",
        "redirect",
        "to",
        ":8080",
    )
    assert connects(host, WORLD4, 7777, user=NOBODY)
    host.nft(
        "add",
        "rule",
        "ip",
        "old",
        "output",
        "meta",
        "skuid",
        str(ENGINE_USER),
        "tcp",
        "dport",
        "7777",
        "redirect",
        "to",
        ":8080",
    )
    assert not connects(host, WORLD4, 7777, user=ENGINE_USER)
