"""Hosts of a test's own, in network namespaces: an engine, the gateway's host, and a world behind it that answers on everything.

    engine  e0 ── engines0  gateway  w0 ── w0  world
            10.77.1.2  .1            10.77.2.1  .2    and the addresses that `weir doctor` tries: 1.1.1.1, 169.254.169.254, …

The gateway's host forwards as a router would, so that nothing but rules holds packets back. Needs root, iproute2 and
nftables, and says so: no test is skipped.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.check.validators import with_numbers
from gateway.doctor.targets import METADATA, PUBLIC4, PUBLIC6
from tests.e2e.processes import REPOSITORY, environment

ENGINE_USER, GATEWAY_USER = 64101, 64100
ENGINE4, ENGINE6 = "10.77.1.2", "fd77:1::2"
GATEWAY4, GATEWAY6 = "10.77.1.1", "fd77:1::1"
GATEWAY_OUTSIDE4 = "10.77.2.1"
WORLD4, WORLD6 = "10.77.2.2", "fd77:2::2"
START_S_MAX = 20.0
_numbers = itertools.count()

# Answers on what the doctor tries: TCP takes connections, UDP says something back to anything but an empty datagram.
WORLD_PROGRAM = """
import selectors, socket, sys
selector = selectors.DefaultSelector()
for port in (53, 80, 443, 853, 3128, 7777):
    tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    selector.register(tcp, selectors.EVENT_READ, lambda s: s.accept()[0].close())
for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    for port in (53, 7778):
        udp = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            level, kind = socket.IPPROTO_IPV6, socket.IPV6_PKTINFO
        else:
            udp.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
            level, kind = socket.IPPROTO_IP, 8
        udp.bind((anywhere, port))
        def answer(s, level=level, kind=kind):
            data, ancillary, _, peer = s.recvmsg(2048, 256)
            # From the address that was asked, as a host with several has to.
            back = [(l, k, v) for l, k, v in ancillary if (l, k) == (level, kind)]
            s.sendmsg([data[:2] + b"\\x81\\x80" + data[4:] if data else b"heard"], back, 0, peer)
        selector.register(udp, selectors.EVENT_READ, answer)
print("listening", flush=True)
while True:
    for key, _ in selector.select():
        key.data(key.fileobj)
"""

# An engine that answers every request with the same words.
ENGINE_PROGRAM = """
import http.server, json, os, socket, socketserver, sys
ANSWER = json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [{"index": 0,
    "message": {"role": "assistant", "content": "From behind the wall."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}}).encode()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)
    do_GET = do_POST = answer
    def log_message(self, *_): pass
    def address_string(self): return "peer"
class Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    def get_request(self):
        connection, _ = super().get_request()
        return connection, ("", 0)
where = sys.argv[1]
os.umask(0o007)
if where.startswith("unix:"):
    server = Unix(where.removeprefix("unix:"), Handler)
else:
    host, port = where.rsplit(":", 1)
    server = http.server.ThreadingHTTPServer((host, int(port)), Handler)
print("listening", flush=True)
server.serve_forever()
"""

# Prints those of its arguments that can be connected to.
CONNECT_PROGRAM = """
import asyncio, sys
async def attempt(place):
    address, port = place.split("|")
    try:
        async with asyncio.timeout(1.5):
            _, writer = await asyncio.open_connection(address, int(port))
        print(place)
        writer.close()
    except (OSError, TimeoutError):
        pass
async def attempts(): await asyncio.gather(*map(attempt, sys.argv[1:]))
asyncio.run(attempts())
"""


class NoNamespaces(RuntimeError):
    """This machine cannot make them: the tests of isolation cannot say anything, and that is a failure."""


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """One command, to its end."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if check and done.returncode:
        raise NoNamespaces(f"{' '.join(command)}: {done.stderr.strip()}\nThis test takes root, iproute2 and nftables.")
    return done


class Namespace:
    """One host."""

    def __init__(self, name: str) -> None:
        self.name = f"weir-{os.getpid()}-{next(_numbers)}-{name}"
        run("ip", "netns", "add", self.name)
        self._processes: list[subprocess.Popen[str]] = []
        self.run("ip", "link", "set", "lo", "up")
        # Whoever asks may ping, as on most distributions.
        self.run("sysctl", "-q", "-w", "net.ipv4.ping_group_range=0 2147483647")

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of the system's on this host."""
        return run("ip", "netns", "exec", self.name, *command, check=check)

    def command(self, arguments: Sequence[str], *, user: int = 0, group: int = 0, shell: str = "") -> list[str]:
        """For Python here, as a user without rights but that of reading the interpreter, which may lie in root's home.

        `shell` runs before, as root, with mounts that nobody else sees.
        """
        rights = []
        if user:
            keep = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]
            rights = ["setpriv", f"--reuid={user}", f"--regid={group or user}", "--clear-groups", *keep]
        program = [*rights, sys.executable, "-P", *arguments]
        return ["ip", "netns", "exec", self.name, "sh", "-c", f'{shell or ":"}; exec "$@"', "sh", *program]

    def python(
        self, *arguments: str, user: int = 0, shell: str = "", variables: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Python here, to its end."""
        return subprocess.run(
            self.command(arguments, user=user, shell=shell), cwd=REPOSITORY, env=environment() | (variables or {}),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def start(self, program: str, *arguments: str, user: int = 0, group: int = 0) -> None:
        """A program that says `listening` when it does, for as long as the host is there."""
        process = subprocess.Popen(
            self.command(["-c", program, *arguments], user=user, group=group), cwd=REPOSITORY, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._processes.append(process)
        assert process.stdout is not None
        if process.stdout.readline().strip() != "listening":
            process.kill()
            raise AssertionError(f"it did not start: {process.communicate()[1]}")

    def serve(self, policy: Path, *, group: int = 0) -> None:
        """`weir serve` here, as the gateway's user. Its log lies beside the policy."""
        with policy.with_suffix(".log").open("w") as log:
            command = self.command(["-m", "gateway", "serve", "--policy", str(policy)], user=GATEWAY_USER, group=group)
            self._processes.append(
                subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=log, stderr=log, text=True)
            )

    def rules(self, name: str, **changes: str) -> None:
        """Load a file of deploy/nftables, with the users' numbers. `changes` are textual, each must apply."""
        text = with_numbers((REPOSITORY / "deploy/nftables" / name).read_text())
        for before, after in changes.items():
            assert before in text
            text = text.replace(before, after)
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, "nft", "--file", "-"],
            input=text,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def nft(self, *words: str) -> None:
        """One nft command."""
        self.run("nft", *words)

    def close(self) -> None:
        """Everything of it goes."""
        for process in self._processes:
            process.kill()
            process.communicate()
        run("ip", "netns", "delete", self.name, check=False)


class Network:
    """The three hosts."""

    def __init__(self) -> None:
        self.hosts: list[Namespace] = []
        try:
            self.engine, self.gateway, self.world = (self._host(name) for name in ("engine", "gateway", "world"))
            _link(self.engine, "e0", self.gateway, "engines0")
            _link(self.gateway, "w0", self.world, "w0")
            _address(self.engine, "e0", f"{ENGINE4}/24", f"{ENGINE6}/64")
            _address(self.gateway, "engines0", f"{GATEWAY4}/24", f"{GATEWAY6}/64")
            _address(self.gateway, "w0", f"{GATEWAY_OUTSIDE4}/24", "fd77:2::1/64")
            _address(self.world, "w0", f"{WORLD4}/24", f"{WORLD6}/64")
            for address in (*PUBLIC4, *PUBLIC6, *METADATA):
                self.world.run("ip", "address", "add", address, "dev", "lo")
            _routes(self.engine, GATEWAY4, GATEWAY6)
            _routes(self.world, GATEWAY_OUTSIDE4, "fd77:2::1")
            _routes(self.gateway, WORLD4, WORLD6)
            self.gateway.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
            self.world.start(WORLD_PROGRAM)
        except BaseException:
            self.close()
            raise

    def _host(self, name: str) -> Namespace:
        self.hosts.append(Namespace(name))
        return self.hosts[-1]

    def close(self) -> None:
        """Everything of it goes."""
        for host in self.hosts:
            host.close()


def reached(host: Namespace, *places: tuple[str, int], user: int = 0) -> set[tuple[str, int]]:
    """To which of these a TCP connection comes about from there; all are tried at the same time."""
    done = host.python("-c", CONNECT_PROGRAM, *(f"{address}|{port}" for address, port in places), user=user)
    assert done.returncode == 0, done.stderr
    return {place for place in places if f"{place[0]}|{place[1]}" in done.stdout.split()}


def connects(host: Namespace, address: str, port: int, *, user: int = 0) -> bool:
    """Whether a TCP connection comes about from there."""
    return bool(reached(host, (address, port), user=user))


def until_connects(host: Namespace, address: str, port: int, *, user: int = 0) -> None:
    """Wait for somebody to listen."""
    deadline_s = time.monotonic() + START_S_MAX
    while not connects(host, address, port, user=user):
        assert time.monotonic() < deadline_s, f"nobody listens on {address}:{port}"


def _link(one: Namespace, one_end: str, other: Namespace, other_end: str) -> None:
    run("ip", "link", "add", one_end, "netns", one.name, "type", "veth", "peer", other_end, "netns", other.name)
    one.run("ip", "link", "set", one_end, "up")
    other.run("ip", "link", "set", other_end, "up")


def _address(host: Namespace, device: str, address4: str, address6: str) -> None:
    host.run("ip", "address", "add", address4, "dev", device)
    host.run("ip", "-6", "address", "add", address6, "dev", device, "nodad")


def _routes(host: Namespace, next_hop4: str, next_hop6: str) -> None:
    host.run("ip", "route", "add", "default", "via", next_hop4)
    host.run("ip", "-6", "route", "add", "default", "via", next_hop6)
