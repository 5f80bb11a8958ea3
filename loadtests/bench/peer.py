"""A peer: something that answers the benchmark's question, and its life as a process."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120.0  # the slowest peer known needs about ten seconds to import, and a busy machine ten times that
STOP_TIMEOUT_S = 3.0
STDERR_TAIL_LINES = 30


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where one upstream is reached through a peer, and how a request for it is written."""

    port: int
    key: str
    host: str = "127.0.0.1"
    model: str = "bench"
    path: str = "/v1/chat/completions"
    headers: Mapping[str, str] = field(default_factory=dict)  # beyond the usual ones


@dataclass(frozen=True, kw_only=True)
class Peer:
    """How to start something and how to reach the two upstreams through it. An empty `argv` starts nothing."""

    name: str
    burst: Target  # leads to the upstream that sends a stream at once
    paced: Target  # leads to the upstream that sends a token every few milliseconds
    argv: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)  # on top of our own
    files: Mapping[Path, str] = field(default_factory=dict)  # written before the start
    ready_url: str = ""  # ready when a GET answers 200


@dataclass(frozen=True, kw_only=True)
class RunningPeer:
    """A peer that is ready; `pid` is None where there is no process."""

    peer: Peer
    pid: int | None


class PeerError(Exception):
    """A peer did not start, or died; the message ends with what it last wrote."""


@contextmanager
def running(peer: Peer, *, directory: Path) -> Iterator[RunningPeer]:
    """Start a peer, wait until it is ready, and stop all its processes on the way out."""
    for path, text in peer.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if not peer.argv:
        yield RunningPeer(peer=peer, pid=None)
        return
    output = directory / f"{peer.name}.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            peer.argv,
            cwd=REPOSITORY,
            env={**os.environ, **peer.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the bench alone, which then stops the whole group
        )
    try:
        wait_until_ready(peer, process, output)
        yield RunningPeer(peer=peer, pid=process.pid)
        if process.poll() is not None:
            raise PeerError(f"{peer.name} died with exit status {process.returncode}{tail(output)}")
    finally:
        stop_group(process)


def wait_until_ready(peer: Peer, process: "subprocess.Popen[bytes]", output: Path) -> None:
    """Raises PeerError when the process ends or the time is up first."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    reason = "no answer"
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            command = " ".join(peer.argv)
            raise PeerError(f"{peer.name} ended with exit status {process.returncode}: {command}{tail(output)}")
        try:
            with urllib.request.urlopen(peer.ready_url, timeout=1) as answer:  # noqa: S310 (a URL of our own making)
                if answer.status == 200:
                    return
                reason = f"status {answer.status}"
        except (urllib.error.URLError, OSError) as error:
            reason = str(error)
        time.sleep(0.05)
    raise PeerError(f"{peer.name}: {peer.ready_url} not ready in {START_TIMEOUT_S:.0f} s ({reason}){tail(output)}")


def stop_group(process: "subprocess.Popen[bytes]") -> None:
    """Ask the process to end, then kill what is left of its group."""
    process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):  # the kill below is for it too
            process.wait(STOP_TIMEOUT_S)
    finally:
        with suppress(ProcessLookupError):  # nothing left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tail(output: Path) -> str:
    """The last lines of a peer's output, indented under a heading, for an error message."""
    lines = output.read_text(errors="replace").splitlines()[-STDERR_TAIL_LINES:]
    return "\n  its last output:\n" + "\n".join(f"  | {line}" for line in lines or ["(none)"])


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """The command line of a Python module in this interpreter."""
    return (sys.executable, "-m", name, *arguments)


def free_port() -> int:
    """A loopback port that nobody listens on, below the range the kernel takes outgoing ports from (32768 up)."""
    while True:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
