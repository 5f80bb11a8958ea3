"""Whether gateways are well: the tick, settlement, the ledger and its leases, the audit log, the licence, workers."""

from deploy.grafana.boards.queries import ACCOUNT, GATEWAY, GATEWAYS
from deploy.grafana.dashboard import Board, Panel, Query, Row, Threshold

_YES = {0.0: "no", 1.0: "yes"}
_FOREVER_S = 1e12  # stands for +Inf; thirty thousand years

STATE = Row(
    title="State",
    panels=[
        Panel(
            title="Licence ends in",
            description="When the operating licence in force ends; then nothing leaves until the next one is installed. "
            "`no licence`: the policy asks for none.",
            kind="stat",
            unit="s",
            width=5,
            height=5,
            minimum=None,
            base="red",
            thresholds=(Threshold(value=4 * 3600, color="orange"), Threshold(value=8 * 3600, color="green")),
            words={_FOREVER_S: "no licence"},
            queries=[
                Query(
                    expr=f"clamp_max(min by (instance) (weir_licence_expires_timestamp_seconds{GATEWAY}) - time(), "
                    f"{_FOREVER_S:g})",
                    legend="{{instance}}",
                )
            ],
        ),
        Panel(
            title="Licence in force",
            description="Whether an operating licence is in force, or the policy asks for none.",
            kind="stat",
            unit="none",
            width=4,
            height=5,
            base="red",
            thresholds=(Threshold(value=1, color="green"),),
            words=_YES,
            queries=[Query(expr=f"min by (instance) (weir_licence_ok{GATEWAY})", legend="{{instance}}")],
        ),
        Panel(
            title="Last reload taken",
            description="Whether the last policy file that was read came into force. If not, the one before it is in force.",
            kind="stat",
            unit="none",
            width=4,
            height=5,
            base="red",
            thresholds=(Threshold(value=1, color="green"),),
            words=_YES,
            queries=[
                Query(expr=f"min by (instance) (weir_config_last_reload_successful{GATEWAY})", legend="{{instance}}")
            ],
        ),
        Panel(
            title="Workers",
            description="Worker processes that serve; 0 where one process does everything.",
            kind="stat",
            unit="none",
            width=3,
            height=5,
            queries=[Query(expr=f"max by (instance) (weir_workers{GATEWAY})", legend="{{instance}}")],
        ),
        Panel(
            title="Worker restarts",
            description="Workers that died and were replaced within an hour. Each broke off its answers.",
            kind="stat",
            unit="none",
            decimals=0,
            width=4,
            height=5,
            thresholds=(Threshold(value=1, color="red"),),
            queries=[
                Query(
                    expr=f"sum by (instance) (increase(weir_worker_restarts_total{GATEWAY}[1h]))", legend="{{instance}}"
                )
            ],
        ),
        Panel(
            title="Version and policy",
            description="What runs, and the digest of the policy in force: gateways that serve the same model should agree.",
            kind="stat",
            unit="none",
            width=4,
            height=5,
            queries=[
                Query(expr=f"count by (version, policy) (weir_build_info{GATEWAY})", legend="{{version}} {{policy}}")
            ],
        ),
    ],
)

TICK = Row(
    title="Tick and settlement",
    panels=[
        Panel(
            title="Tick lag",
            description="From a tick to its bytes being handed to the sockets: mostly the flush of the audit log's disk. More "
            "than the tick itself (20 ms, unless the policy says otherwise) makes the next tick late.",
            unit="s",
            thresholds=(Threshold(value=0.02, color="red"),),
            queries=[
                Query(
                    expr=f"histogram_quantile({share}, sum by (instance, le) "
                    f"(rate(weir_tick_lag_seconds_bucket{GATEWAY}[$__rate_interval])))",
                    legend=f"{{{{instance}}}} p{name}",
                )
                for share, name in ((0.5, "50"), (0.99, "99"), (0.999, "99.9"))
            ],
        ),
        Panel(
            title="Ticks missed",
            description="Ticks that began late because one before took too long. Each is a moment that a backend may have "
            "chosen: timing finer than the claim assumes.",
            unit="cps",
            queries=[
                Query(
                    expr=f"sum by (instance) (rate(weir_ticks_missed_total{GATEWAY}[$__rate_interval]))",
                    legend="{{instance}}",
                )
            ],
        ),
        Panel(
            title="Settle backlog",
            description="Closed answers that wait for their refund: long texts for zstd, all for the scorer. Until then they "
            "count with what they cost before.",
            unit="short",
            queries=[
                Query(
                    expr=f"sum by (instance, code) (weir_settle_backlog_answers{GATEWAY})",
                    legend="{{instance}} {{code}}",
                )
            ],
        ),
        Panel(
            title="Scorer errors by kind",
            description="Batches and answers that were not scored. They keep what zstd left, so budgets last less long.",
            unit="cps",
            queries=[
                Query(
                    expr=f"sum by (instance, kind) (rate(weir_scorer_errors_total{GATEWAY}[$__rate_interval]))",
                    legend="{{instance}} {{kind}}",
                )
            ],
        ),
    ],
)

LEDGER = Row(
    title="Ledger and leases",
    panels=[
        Panel(
            title="Leases last for",
            description="How long this gateway may go on with what it has been granted if the ledger does not answer again: "
            "nearly five minutes when all is well. At 0 requests get 503.",
            unit="s",
            width=8,
            maximum=300,
            thresholds=(Threshold(value=0, color="red"), Threshold(value=120, color="green")),
            queries=[
                Query(
                    expr=f"clamp_min(min by (instance) (weir_leases_until_timestamp_seconds{GATEWAY}) - time(), 0)",
                    legend="{{instance}}",
                )
            ],
        ),
        Panel(
            title="Held of each budget",
            description="What gateways have been granted and have not used, and what open answers have reserved. A crash "
            "turns it into used, until the audit log proves what did not leave.",
            unit="decbits",
            width=8,
            stacked=True,
            queries=[
                Query(
                    expr=f"sum by {ACCOUNT} (weir_budget_leased_bits{GATEWAY})",
                    legend="leased: {{owner}} {{name}} {{model}} {{window}}",
                ),
                Query(
                    expr=f"sum by {ACCOUNT} (weir_budget_reserved_bits{GATEWAY})",
                    legend="reserved: {{owner}} {{name}} {{model}} {{window}}",
                ),
            ],
        ),
        Panel(
            title="Open leases",
            description="Grants of the ledger that are not closed yet.",
            unit="short",
            width=8,
            queries=[Query(expr=f"sum by (instance) (weir_leases_open{GATEWAY})", legend="{{instance}}")],
        ),
        Panel(
            title="Ledger errors",
            description="Times the ledger did not answer.",
            unit="cps",
            queries=[
                Query(
                    expr=f"sum by (instance) (rate(weir_ledger_errors_total{GATEWAY}[$__rate_interval]))",
                    legend="{{instance}}",
                )
            ],
        ),
        Panel(
            title="Frozen accounts",
            description="Accounts that grant nothing because the ledger has forgotten grants of them: a restored backup, or a "
            "failover to a standby that lagged.",
            unit="short",
            thresholds=(Threshold(value=1, color="red"),),
            queries=[Query(expr=f"max by (instance) (weir_ledger_frozen_accounts{GATEWAY})", legend="{{instance}}")],
        ),
    ],
)

AUDIT = Row(
    title="Audit log",
    panels=[
        Panel(
            title="Since it was signed",
            description="Since all that was on the record was signed; twice a second when all is well.",
            unit="s",
            width=8,
            thresholds=(Threshold(value=30, color="red"),),
            queries=[
                Query(
                    expr=f"time() - max by (instance) (weir_audit_checkpoint_timestamp_seconds{GATEWAY} > 0)",
                    legend="{{instance}}",
                )
            ],
        ),
        Panel(
            title="Since it was witnessed",
            description="Since a quorum of witnesses has cosigned. Past the policy's `within` nothing leaves. Nothing is shown "
            "where the policy names no witnesses.",
            unit="s",
            width=8,
            thresholds=(Threshold(value=900, color="red"),),
            queries=[
                Query(
                    expr=f"time() - max by (instance) (weir_audit_witnessed_timestamp_seconds{GATEWAY} > 0)",
                    legend="{{instance}}",
                )
            ],
        ),
        Panel(
            title="Records signed",
            description="Records that became part of the signed tree.",
            unit="cps",
            width=8,
            minimum=None,
            queries=[
                Query(
                    expr=f"sum by (instance) (deriv(weir_audit_signed_records{GATEWAY}[$__rate_interval]))",
                    legend="{{instance}}",
                )
            ],
        ),
        Panel(
            title="Disk free",
            description="Space left on the audit log's file system. When it is full the gateway ends, with status 74.",
            unit="bytes",
            queries=[Query(expr=f"min by (instance) (weir_audit_disk_free_bytes{GATEWAY})", legend="{{instance}}")],
        ),
        Panel(
            title="Disk free in a week",
            description="The same in seven days, if the last six hours go on. Below zero it is full by then.",
            unit="bytes",
            minimum=None,
            thresholds=(Threshold(value=0, color="green"),),
            base="red",
            queries=[
                Query(
                    expr=f"min by (instance) (predict_linear(weir_audit_disk_free_bytes{GATEWAY}[6h], 604800))",
                    legend="{{instance}}",
                )
            ],
        ),
    ],
)

CONNECTIONS = Row(
    title="Connections",
    panels=[
        Panel(
            title="Connections refused",
            description="Client connections dropped at once because the process had as many open as it may.",
            unit="cps",
            queries=[
                Query(
                    expr=f"sum by (instance) (rate(weir_connections_refused_total{GATEWAY}[$__rate_interval]))",
                    legend="{{instance}}",
                )
            ],
        ),
        Panel(
            title="Answers open",
            description="Admitted and not ended, by gateway.",
            unit="short",
            queries=[Query(expr=f"sum by (instance) (weir_answers_in_flight{GATEWAY})", legend="{{instance}}")],
        ),
    ],
)

BOARD = Board(
    name="gateway",
    title="Weir: gateway health",
    description="Whether gateways are well: the tick, settlement, the ledger and its leases, the audit log, the licence, workers.",
    variables=[GATEWAYS],
    rows=[STATE, TICK, LEDGER, AUDIT, CONNECTIONS],
)
