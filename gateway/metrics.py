"""Every Prometheus metric of the gateway, with its labels. Labels hold configured names only, never text from a request."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Metric, disable_created_metrics

from policy.refusal import Reason
from policy.release import Outcome

disable_created_metrics()  # type: ignore[no-untyped-call]  # a `_created` series beside every counter doubles the page and helps nobody
TICK_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
CODES = ("raw", "zstd", "language_model")
ACCOUNT = ("owner", "name", "model", "window")  # what tells budgets apart; `model` is empty if all of a tenant's count
REQUEST_BUCKETS_S = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Registry(Protocol):
    """What has metrics: one process's, or many processes' taken together."""

    def collect(self) -> Iterable[Metric]:
        """Families as they stand."""


class Metrics:
    """One registry for one process; docs/metrics.md lists what is here, and a test holds the two together."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.build = Info(
            "weir_build",
            "The gateway's version, the digest of the policy in force and of the code set that charges "
            "are counted under.",
            registry=r,
        )
        self.requests = Counter(
            "weir_requests", "Admitted requests by how their answer ended.", ["model", "tenant", "outcome"], registry=r
        )
        self.refusals = Counter(
            "weir_refusals", "Requests refused, by reason; docs/api.md lists the reasons.", ["reason"], registry=r
        )
        self.connections_refused = Counter(
            "weir_connections_refused", "Client connections dropped at once because 10,000 were open.", registry=r
        )
        self.in_flight = Gauge("weir_answers_in_flight", "Answers admitted and not ended.", ["model"], registry=r)
        self.released_text = Counter(
            "weir_released_text_bytes", "Text that left, in UTF-8 bytes.", ["model", "tenant"], registry=r
        )
        self.released_bits = Counter(
            "weir_released_bits",
            "Text that left, in bits, 8 a byte: before any code.",
            ["model", "tenant"],
            registry=r,
        )
        self.received_wire = Counter(
            "weir_received_wire_bytes", "Body bytes read from backends, envelope included.", registry=r
        )
        self.sent_wire = Counter(
            "weir_sent_wire_bytes",
            "Body bytes sent to clients, envelope included and compressed as the client asked.",
            registry=r,
        )
        self.charged_bits = Counter(
            "weir_charged_bits",
            "Bits charged at release, by the raw code: always at least the released bits.",
            ["model", "tenant", "code"],
            registry=r,
        )
        self.settled_bits = Counter(
            "weir_settled_bits",
            "What answers cost after a step of their settlement, by the code that it chose: `raw`, "
            "`zstd`, and later `language_model`.",
            ["model", "tenant", "code"],
            registry=r,
        )
        self.refunded_bits = Counter(
            "weir_refunded_bits",
            "Bits that settlement gave back. Charged minus refunded over all codes is what counts against the budgets.",
            ["model", "tenant", "code"],
            registry=r,
        )
        self.budget_limit = Gauge(
            "weir_budget_limit_bits",
            "The limit of an account. `owner` is `model` or `tenant`; `model` whose traffic counts in it,"
            " empty where all of a tenant's does.",
            ACCOUNT,
            registry=r,
        )
        self.budget_window = Gauge(
            "weir_budget_window_seconds", "How long a budget's window is; +Inf for a lifetime.", ACCOUNT, registry=r
        )
        self.budget_used = Gauge(
            "weir_budget_used_bits", "Bits of a budget that left, or may have left before a crash.", ACCOUNT, registry=r
        )
        self.budget_reserved = Gauge(
            "weir_budget_reserved_bits", "Bits of a budget held for open answers.", ACCOUNT, registry=r
        )
        self.budget_leased = Gauge(
            "weir_budget_leased_bits",
            "Bits that this gateway was granted and has neither used nor reserved; a crash turns them into used.",
            ACCOUNT,
            registry=r,
        )
        self.days_to_theft = Gauge(
            "weir_days_to_theft",
            "Days until the model's caps add up to what a thief needs under an assumption; +Inf if a "
            "lifetime budget forbids it.",
            ["model", "assumption"],
            registry=r,
        )
        self.theft_bits = Gauge(
            "weir_theft_bits",
            "What a thief must carry off under an assumption.",
            ["model", "assumption"],
            registry=r,
        )
        self.theft_assumption = Info(
            "weir_theft_assumption",
            "The assumption that the policy makes of a model (`theft_compression`).",
            ["model"],
            registry=r,
        )
        self.leases_open = Gauge("weir_leases_open", "Grants of the ledger that this gateway has open.", registry=r)
        self.leases_until = Gauge(
            "weir_leases_until_timestamp_seconds",
            "Until when leases may be used if the ledger does not answer again; with `--workers`, those of "
            "the first worker that would have to stop.",
            registry=r,
        )
        self.tick_lag = Histogram(
            "weir_tick_lag_seconds",
            "From a tick to its bytes being handed to the sockets: mostly the disk flush.",
            buckets=TICK_BUCKETS_S,
            registry=r,
        )
        self.ticks_missed = Counter(
            "weir_ticks_missed", "Ticks that began late because one before took too long.", registry=r
        )
        self.backend_errors = Counter(
            "weir_backend_errors", "Failures of backends, by kind.", ["model", "kind"], registry=r
        )
        self.request_duration = Histogram(
            "weir_request_duration_seconds",
            "From admission to the last byte.",
            ["model"],
            buckets=REQUEST_BUCKETS_S,
            registry=r,
        )
        self.first_release = Histogram(
            "weir_first_release_seconds",
            "From admission to the first release.",
            ["model"],
            buckets=REQUEST_BUCKETS_S,
            registry=r,
        )
        self.audit_records = Gauge(
            "weir_audit_signed_records", "Records of the audit log that are in its signed tree.", registry=r
        )
        self.audit_checkpoint_at = Gauge(
            "weir_audit_checkpoint_timestamp_seconds",
            "When all that was on the record was signed: more than a few seconds ago is an alarm.",
            registry=r,
        )
        self.audit_witnessed_at = Gauge(
            "weir_audit_witnessed_timestamp_seconds",
            "When the audit log was last seen by a quorum of its witnesses; 0 if never.",
            registry=r,
        )
        self.audit_witness_errors = Counter(
            "weir_audit_witness_errors",
            "Times a witness did not cosign the audit log, by its name in the policy file of witnesses.",
            ["witness"],
            registry=r,
        )
        self.audit_disk_free = Gauge(
            "weir_audit_disk_free_bytes", "Space left on the audit log's file system.", registry=r
        )
        self.ledger_frozen = Gauge(
            "weir_ledger_frozen_accounts",
            "Accounts that grant nothing because the ledger has forgotten grants of them; see `weir ledger thaw`.",
            registry=r,
        )
        self.ledger_errors = Counter("weir_ledger_errors", "Times the ledger did not answer.", registry=r)
        self.settle_backlog = Gauge(
            "weir_settle_backlog_answers",
            "Closed answers waiting to be settled: `zstd` for long texts, `language_model` for the scorer.",
            ["code"],
            registry=r,
        )
        self.scorer_errors = Counter(
            "weir_scorer_errors",
            "Answers or batches that the scorer did not score, by kind. The answers keep what zstd left.",
            ["kind"],
            registry=r,
        )
        self.reloads = Counter(
            "weir_config_reloads", "Policy reloads; `result` is `taken` or `refused`.", ["result"], registry=r
        )
        self.reload_ok = Gauge("weir_config_last_reload_successful", "1 if the last reload was taken.", registry=r)
        self.workers = Gauge("weir_workers", "Worker processes that serve; 0 without `--workers`.", registry=r)
        self.worker_restarts = Counter("weir_worker_restarts", "Workers that died and were replaced.", registry=r)
        self.reload_at = Gauge(
            "weir_config_last_reload_success_timestamp_seconds", "When a policy was last taken.", registry=r
        )
        self.licence_ok = Gauge(
            "weir_licence_ok",
            "1 if an operating licence is in force, or the policy asks for none; with `--workers`, only "
            "if every process says so.",
            registry=r,
        )
        self.licence_expires = Gauge(
            "weir_licence_expires_timestamp_seconds",
            "When the operating licence that was last in force ends; +Inf if the policy asks for none.",
            registry=r,
        )
        for reason in Reason:
            self.refusals.labels(reason.label)
        self._of: dict[tuple[str, str], AnswerMetrics] = {}

    def of(self, model: str, tenant: str) -> AnswerMetrics:
        """The labelled metrics of one model and tenant, kept: looking labels up again costs more than counting."""
        found = self._of.get((model, tenant))
        if found is None:
            found = self._of[model, tenant] = AnswerMetrics(self, model, tenant)
        return found

    def took(self, *, policy: str, codes: str, wall_s: float) -> None:
        """A policy is in force from here on. Both digests in hex."""
        self.build.info({"version": version("weir"), "policy": policy, "codes": codes})
        self.reload_ok.set(1)
        self.reload_at.set(wall_s)

    def assumes(self, *, model: str, assumption: str) -> None:
        """What the policy assumes of a thief of this model."""
        self.theft_assumption.labels(model).info({"assumption": assumption})

    def refused(self) -> dict[str, int]:
        """Refusals so far, by reason."""
        return {reason.label: int(self.refusals.labels(reason.label)._value.get()) for reason in Reason}  # noqa: SLF001


class AnswerMetrics:
    """What is counted for the answers of one model to one tenant."""

    __slots__ = (
        "_outcomes",
        "_refunded_bits",
        "_settled_bits",
        "duration",
        "first_release",
        "in_flight",
        "raw_bits",
        "released_bits",
        "released_text",
    )

    def __init__(self, metrics: Metrics, model: str, tenant: str) -> None:
        self.raw_bits = metrics.charged_bits.labels(model, tenant, "raw")
        self.released_text = metrics.released_text.labels(model, tenant)
        self.released_bits = metrics.released_bits.labels(model, tenant)
        self.in_flight = metrics.in_flight.labels(model)
        self.duration = metrics.request_duration.labels(model)
        self.first_release = metrics.first_release.labels(model)
        self._settled_bits = {code: metrics.settled_bits.labels(model, tenant, code) for code in CODES}
        self._refunded_bits = {code: metrics.refunded_bits.labels(model, tenant, code) for code in CODES}
        self._outcomes = {
            outcome: metrics.requests.labels(model, tenant, outcome.value if outcome is not None else "client_gone")
            for outcome in (*Outcome, None)
        }

    def released(self, *, bits: int, text_bytes: int) -> None:
        """One release left."""
        self.raw_bits.inc(bits)
        self.released_text.inc(text_bytes)
        self.released_bits.inc(8 * text_bytes)

    def settled(self, *, code: str, refunded_bits: int, charged_bits: int) -> None:
        """One step of a settlement: what it gave back, and what the answer costs now."""
        self._refunded_bits[code].inc(refunded_bits)
        self._settled_bits[code].inc(charged_bits)

    def ended(self, outcome: Outcome | None) -> None:
        """One answer is over; `outcome` is None if the client went away."""
        self._outcomes[outcome].inc()


def counted(registry: Registry, name: str, /, **labels: str) -> int:
    """The sum of all samples of a family that have these labels."""
    samples = [sample for family in registry.collect() if family.name == name for sample in family.samples]
    return int(sum(sample.value for sample in samples if labels.items() <= sample.labels.items()))
