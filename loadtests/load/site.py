"""A gateway in front of the scripted upstream, started for a run of load, and all that is read of the two from outside."""

import hashlib
import json
import re
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.bench.cpu import read_cpu, resident_mib, tree
from loadtests.bench.peer import REPOSITORY, Peer, Target, free_port, module, running
from loadtests.bench.roster import AUDITORS, Site, auditor

READ_TIMEOUT_S = 20.0  # metrics of a process that is overloaded on purpose
SAMPLE = re.compile(r"^([a-z_]+)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'([a-z_]+)="([^"]*)"')
MODEL = "load"


@dataclass(frozen=True, kw_only=True)
class Gauges:
    """A page of metrics."""

    samples: tuple[tuple[str, Mapping[str, str], float], ...]

    def total(self, name: str, /, **labels: str) -> float:
        """The sum of all samples of a name with these labels; 0 if there are none."""
        return sum(value for found, has, value in self.samples if found == name and labels.items() <= has.items())

    def by(self, name: str, label: str, /) -> dict[str, float]:
        """The sums of a name's samples by one label, without zeros."""
        sums: dict[str, float] = {}
        for found, has, value in self.samples:
            if found == name and label in has and value:
                sums[has[label]] = sums.get(has[label], 0) + value
        return sums

    def buckets(self, name: str, /) -> dict[float, float]:
        """A histogram: how many observations were at most so large."""
        return {float(bound): count for bound, count in self.by(f"{name}_bucket", "le").items()}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run's gateway and upstream are."""

    port: int
    admin_port: int
    backend_port: int
    keys: tuple[str, ...]  # one a tenant
    policy: Path | None = None  # None: a gateway that somebody else has started
    audit: Path | None = None
    pid: int | None = None
    host: str = "127.0.0.1"
    model: str = MODEL

    def gauges(self) -> Gauges:
        """The gateway's metrics as they stand."""
        return parsed(get(f"http://{self.host}:{self.admin_port}/metrics"))

    def said(self) -> dict[str, int]:
        """The upstream's own count."""
        return dict(json.loads(get(f"http://127.0.0.1:{self.backend_port}/said")))

    def resident_mib(self) -> float:
        """Of the gateway's processes."""
        assert self.pid is not None
        return resident_mib(self.pid)

    def descriptors(self) -> int:
        """That the gateway's processes have open."""
        assert self.pid is not None
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in tree(self.pid))

    def cpu_s(self) -> float:
        """That the gateway's processes have used so far."""
        assert self.pid is not None
        return sum(read_cpu(self.pid).run_ns.values()) / 1e9

    def books(self) -> tuple[str, int]:
        """What `weir audit verify` says at the end, and bits by which the log's sums and the ledger differ, of all accounts."""
        assert self.audit is not None
        verified = weir("audit", "verify", str(self.audit))
        folded = weir("audit", "fold", "--policy", str(self.policy), "--json", str(self.audit))
        if verified.returncode != 0:
            return verified.stdout + verified.stderr, -1
        accounts = json.loads(folded.stdout)["accounts"]
        return "", sum(abs(account["difference_bits"]) for account in accounts)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a run asks of its gateway."""

    tenants: int = 4
    streams_max: int = 4096  # a tenant
    upstream_port: int | None = None  # None: straight to the upstream
    first_byte_s: float = 60.0
    idle_s: float = 60.0
    extra: Mapping[str, object] = field(default_factory=dict)  # of the policy's first level


@contextmanager
def started(wanted: Wanted, *, backend_port: int | None = None) -> Iterator[Place]:
    """Upstream and gateway as processes of their own, in a directory that goes with them."""
    with tempfile.TemporaryDirectory(prefix="weir-load-") as name:
        directory = Path(name)
        backend_port = backend_port or free_port()
        place = Place(
            port=free_port(),
            admin_port=free_port(),
            backend_port=backend_port,
            keys=tuple(
                f"load-key-{index}-{hashlib.sha256(name.encode()).hexdigest()[:24]}" for index in range(wanted.tenants)
            ),
            policy=directory / "weir.yaml",
            audit=directory / "audit",
        )
        site = Site(directory=directory, burst_port=backend_port, paced_port=backend_port, key="")
        target = Target(port=place.port, key="")
        backend = Peer(
            name="upstream",
            burst=target,
            paced=target,
            argv=module("loadtests.load.backend", "--port", str(backend_port)),
            ready_url=f"http://127.0.0.1:{backend_port}/readyz",
        )
        gateway = Peer(
            name="gateway",
            burst=target,
            paced=target,
            argv=module("gateway", "serve", "--policy", str(place.policy)),
            files={directory / "weir.yaml": json.dumps(policy(wanted, place, site))},  # JSON is YAML
            ready_url=f"http://127.0.0.1:{place.admin_port}/readyz",
        )
        with running(backend, directory=directory), running(gateway, directory=directory) as process:
            yield Place(**{**vars(place), "pid": process.pid})


def policy(wanted: Wanted, place: Place, site: Site) -> dict[str, object]:
    """Everything on that costs something: two auditors, zstd settlement, a budget for every tenant."""
    timeouts = {
        "connect": "1s",
        "first_byte": f"{wanted.first_byte_s:g}s",
        "idle": f"{wanted.idle_s:g}s",
        "total": "600s",
    }
    return {
        "listen": f"127.0.0.1:{place.port}",
        "admin": f"127.0.0.1:{place.admin_port}",
        "models": {
            MODEL: {
                "upstream": f"http://127.0.0.1:{wanted.upstream_port or place.backend_port}",
                "weights": {"parameters": 70e9},
                "theft_compression": 1,
                "budgets": [{"window": "lifetime", "fraction": "100%"}],
                "timeouts": timeouts,
            }
        },
        "tenants": {
            f"tenant-{index}": {
                "keys": [f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"],
                "models": [MODEL],
                "budget": {"window": "lifetime", "bytes": "30GB"},
                "streams_max": wanted.streams_max,
            }
            for index, key in enumerate(place.keys)
        },
        "meters": ["raw", "zstd"],
        "audit": {
            "directory": str(place.audit),
            "auditors": [auditor(site.directory, name) for name in AUDITORS],
        },
        "ledger": f"sqlite:{site.directory / 'ledger.db'}",
        **wanted.extra,
    }


def parsed(page: str) -> Gauges:
    """Prometheus' text format, as far as the gateway writes it."""
    samples = []
    for line in page.splitlines():
        if found := SAMPLE.match(line):
            name, labels, value = found.groups()
            samples.append((name, dict(LABEL.findall(labels or "")), float(value)))
    return Gauges(samples=tuple(samples))


def get(url: str) -> str:
    """A page of our own."""
    with urllib.request.urlopen(url, timeout=READ_TIMEOUT_S) as answer:  # noqa: S310 (a URL of our own making)
        return str(answer.read().decode())


def weir(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a `weir` command to its end."""
    return subprocess.run(module("gateway", *arguments), cwd=REPOSITORY, capture_output=True, text=True, check=False)
