"""What the bench starts of ours: the upstreams, no proxy, the floor and the gateway, each a function from a site to a Peer."""

import hashlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.peer import REPOSITORY, Peer, Target, free_port, module

AUDITORS = ("anna", "boris")


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a run has prepared for its peers."""

    directory: Path  # empty at the start, gone after the run
    burst_port: int  # upstream that sends a stream at once
    paced_port: int  # upstream that sends a token every few milliseconds
    key: str  # the API key of all requests


def upstream(name: str, *, port: int, pace_ms: float, arrivals: Path | None = None) -> Peer:
    """The inference server itself, started like a peer."""
    target = Target(port=port, key="")
    options = ("--arrivals", str(arrivals)) if arrivals else ()
    return Peer(
        name=name,
        burst=target,
        paced=target,
        argv=module("loadtests.bench.upstream", "--port", str(port), "--pace-ms", str(pace_ms), *options),
        ready_url=f"http://127.0.0.1:{port}/readyz",
    )


def direct(site: Site) -> Peer:
    """No proxy: what the client and the upstream take themselves."""
    return Peer(
        name="direct",
        burst=Target(port=site.burst_port, key=site.key),
        paced=Target(port=site.paced_port, key=site.key),
    )


def floor(site: Site) -> Peer:
    """The no-op aiohttp proxy."""
    burst_port, paced_port = free_port(), free_port()
    routes = (f"{burst_port}={site.burst_port}", f"{paced_port}={site.paced_port}")
    return Peer(
        name="floor",
        burst=Target(port=burst_port, key=site.key),
        paced=Target(port=paced_port, key=site.key),
        argv=module("loadtests.bench.floor", "--route", routes[0], "--route", routes[1]),
        ready_url=f"http://127.0.0.1:{burst_port}/readyz",
    )


def gateway(
    site: Site,
    *,
    name: str = "gateway",
    ledger: str = "",
    budget: str = "fraction: 100%",
    auditors: Sequence[str] = (),
) -> Peer:
    """Weir: all of a gateway's work, with a budget so large that it never refuses. Without a `ledger`, one in a file."""
    port, admin_port = free_port(), free_port()
    policy = site.directory / name / "weir.yaml"
    ledger = ledger or f"sqlite:{policy.with_name('ledger.db')}"
    return Peer(
        name=name,
        burst=Target(port=port, key=site.key, model="bench"),
        paced=Target(port=port, key=site.key, model="bench-paced"),
        argv=module("gateway", "serve", "--policy", str(policy)),
        files={
            policy: gateway_policy(
                site, policy.parent, port=port, admin_port=admin_port, ledger=ledger, budget=budget, auditors=auditors
            )
        },
        ready_url=f"http://127.0.0.1:{admin_port}/readyz",
    )


def sealing_gateway(site: Site) -> Peer:
    """Weir with all that can be asked of it: what was said is also sealed, to two auditors."""
    return gateway(site, auditors=[auditor(site.directory, name) for name in AUDITORS])


def auditor(directory: Path, name: str) -> str:
    """An auditor's public key, as a policy has it."""
    command = module("gateway", "keys", "auditor", name, "--out", str(directory / f"{name}.key"))
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()


def gateway_policy(
    site: Site, directory: Path, *, port: int, admin_port: int, ledger: str, budget: str, auditors: Sequence[str]
) -> str:
    """Two models, one per upstream; everything else as small as a policy can be."""
    key_digest = hashlib.sha256(site.key.encode()).hexdigest()
    return f"""\
listen: 127.0.0.1:{port}
admin: 127.0.0.1:{admin_port}
models:
  bench:
    upstream: http://127.0.0.1:{site.burst_port}
    weights: {{parameters: 70e9}}
    theft_compression: 1
    budgets: [{{window: lifetime, {budget}}}]
  bench-paced:
    upstream: http://127.0.0.1:{site.paced_port}
    weights: {{parameters: 70e9}}
    theft_compression: 1
    budgets: [{{window: lifetime, {budget}}}]
tenants:
  bench: {{keys: ["sha256:{key_digest}"], models: [bench, bench-paced], streams_max: 4096}}
audit: {{directory: "{directory}/audit", auditors: {json.dumps(list(auditors))}}}
ledger: {ledger}
"""
