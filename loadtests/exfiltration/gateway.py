"""The gateway under attack: a real process from this checkout, with a policy written for it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.peer import Peer, PeerError, Target, free_port, module, running, tail
from loadtests.exfiltration.charges import Charges, read

TENANTS = 20
LAST_BYTES = 2000  # the budget that two hundred clients race for
CROWD_BYTES = 250  # the budget that twenty tenants nibble at
MORTAL_BYTES = 2_000_000  # what the gateway that is killed may spend; leases are parts of it
AMPLE = "fraction: 100%"


@dataclass(frozen=True, kw_only=True)
class Weir:
    """A running gateway."""

    port: int
    admin_port: int
    pid: int
    log: Path

    async def charges(self) -> Charges:
        """See `charges.read`. Raises `PeerError` with the gateway's last words if it no longer answers."""
        try:
            return await read(self.admin_port)
        except OSError as fault:
            raise PeerError(f"the gateway does not answer on its admin port: {fault}{tail(self.log)}") from fault


def key_of(tenant: str) -> str:
    """Keys need not be secret here: thief and tenants are one party."""
    return f"key-of-{tenant}"


def tenant_name(index: int) -> str:
    """One of the tenants who collude."""
    return f"t{index}"


@asynccontextmanager
async def running_weir(*, directory: Path, backend_port: int, name: str = "weir") -> AsyncIterator[Weir]:
    """Start a gateway in front of the backend, and stop it. What is in `directory` already is its past."""
    port, admin_port = free_port(), free_port()
    policy = directory / f"{name}.yaml"
    target = Target(port=port, key="")
    peer = Peer(
        name=name,
        burst=target,
        paced=target,
        argv=module("gateway", "serve", "--policy", str(policy)),
        files={policy: policy_text(directory, port=port, admin_port=admin_port, backend_port=backend_port)},
        ready_url=f"http://127.0.0.1:{admin_port}/readyz",
    )
    life = running(peer, directory=directory)
    # In a thread: readiness asks the backend, which lives in this process.
    starting = asyncio.ensure_future(asyncio.to_thread(life.__enter__))
    try:
        started = await asyncio.shield(starting)
    except asyncio.CancelledError:
        await starting  # a thread cannot be interrupted: what it has started must still be stopped
        life.__exit__(None, None, None)
        raise
    try:
        assert started.pid is not None
        yield Weir(port=port, admin_port=admin_port, pid=started.pid, log=directory / f"{name}.log")
    except BaseException as fault:
        if not life.__exit__(type(fault), fault, fault.__traceback__):
            raise
    else:
        await asyncio.to_thread(life.__exit__, None, None, None)


def policy_text(directory: Path, *, port: int, admin_port: int, backend_port: int) -> str:
    """Every model is the same backend; they differ in budget and patience."""
    models = {
        "target": (AMPLE, "{}"),
        "hasty": (AMPLE, "{connect: 1s, first_byte: 300ms, idle: 300ms, total: 2s}"),
        "last": (f"bytes: {LAST_BYTES}B", "{}"),
        "crowd": (f"bytes: {CROWD_BYTES}B", "{}"),
        "mortal": (f"bytes: {MORTAL_BYTES}B", "{}"),
    }
    lines = [f"listen: 127.0.0.1:{port}", f"admin: 127.0.0.1:{admin_port}", "models:"]
    for model, (budget, timeouts) in models.items():
        lines += [
            f"  {model}:",
            f"    upstream: http://127.0.0.1:{backend_port}",
            "    weights: {parameters: 70e9}",
            "    theft_compression: 1",
            f"    budgets: [{{window: lifetime, {budget}}}]",
            "    answer_tokens_max: 100000",
            "    embeddings: int8",
            f"    timeouts: {timeouts}",
        ]
    lines.append("tenants:")
    for tenant in ("thief", *map(tenant_name, range(TENANTS))):
        digest = hashlib.sha256(key_of(tenant).encode()).hexdigest()
        lines.append(
            f'  {tenant}: {{keys: ["sha256:{digest}"], models: [{", ".join(models)}], steering: true, streams_max: 4096}}'
        )
    lines += [f"audit: {{directory: {directory}/audit}}", f"ledger: sqlite:{directory}/ledger.db", ""]
    return "\n".join(lines)
