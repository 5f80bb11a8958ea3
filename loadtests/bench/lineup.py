"""Who takes part in a bench: every peer by name, those that have started, and those that are missing with the reason."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

from rich.console import Console

from loadtests.bench.installation import KINDS, Missing, versions
from loadtests.bench.measure import PhaseError, Sample, measure
from loadtests.bench.peer import Peer, PeerError, RunningPeer, running
from loadtests.bench.roster import Site, direct, floor, sealing_gateway
from loadtests.bench.scenario import Scenario, plan_of
from loadtests.bench.strangers import envoy, litellm, nginx, portkey, vllm_router

PEERS: dict[str, Callable[[Site], Peer]] = {
    "direct": direct,
    "floor": floor,
    "gateway": sealing_gateway,
    "nginx": nginx,
    "envoy": envoy,
    "vllm-router": vllm_router,
    "portkey": portkey,
    "litellm": litellm,
}
REASON_CHARS_MAX = 160  # of what a peer's own words add to the table


@dataclass(kw_only=True)
class Lineup:
    """The peers of one run. Ours must work; a stranger that does not is named and left out."""

    started: list[RunningPeer] = field(default_factory=list)
    present: list[str] = field(default_factory=list)  # strangers that have started at least once
    missing: dict[str, str] = field(default_factory=dict)  # peer → why it takes no part at all
    failed: dict[tuple[str, str], str] = field(default_factory=dict)  # (peer, scenario) → why this was not measured

    def start(self, names: Iterable[str], site: Site, stack: ExitStack, console: Console) -> None:
        """Start peers; `stack` stops them. Raises PeerError only for one of ours."""
        for name in names:
            with console.status(f"starting {name}"):
                try:
                    peer = PEERS[name](site)
                    self.started.append(stack.enter_context(running(peer, directory=site.directory)))
                    if name in KINDS and name not in self.present:
                        self.present.append(name)
                except Missing as reason:
                    self.missing[name] = str(reason)
                except PeerError as error:
                    if name not in KINDS:
                        raise
                    self.missing[name] = one_line(f"did not start: {str(error).splitlines()[-1]}")  # its last words

    def measure(
        self, scenario: Scenario, peer: RunningPeer, *, requests: int, seconds: float, round_number: int
    ) -> Sample | None:
        """One phase; None for a stranger that cannot do it, now or before. Raises PhaseError for one of ours."""
        name = peer.peer.name
        if (name, scenario.name) in self.failed:
            return None
        try:
            plan = plan_of(scenario, peer.peer, requests=requests, seconds=seconds)
            return measure(peer, scenario, plan, round_number=round_number)
        except PhaseError as error:
            if name not in KINDS:
                raise
            self.failed[name, scenario.name] = one_line(str(error))
            return None

    def remarks(self) -> list[str]:
        """What the table cannot say: versions of the strangers, and what of them is missing or was not measured."""
        lines = []
        if self.present:
            lines.append("Versions: " + ", ".join(f"{name} {versions(name)}" for name in self.present) + ".")
        lines += [f"Missing: {name}: {reason}" for name, reason in self.missing.items()]
        lines += [f"Not measured: {name}, {scenario}: {why}" for (name, scenario), why in self.failed.items()]
        return lines


def one_line(words: str) -> str:
    """Fit for a line of a document."""
    return " ".join(words.split()).replace("|", "/")[:REASON_CHARS_MAX]
