"""How safe the models are, how much of the budgets is gone, what it was charged by, and who was refused why."""

from deploy.grafana.boards.queries import ACCOUNT, BUDGET, GATEWAY, GATEWAYS, MODEL, MODELS, NET_BITS
from deploy.grafana.dashboard import NEVER_DAYS, Board, Panel, Query, Row, Threshold

_DAYS = (Threshold(value=30, color="orange"), Threshold(value=365, color="green"))
_OWN = 'max by (model, assumption) (weir_theft_assumption_info{instance=~"$gateway", model=~"$model"})'

PROTECTION = Row(
    title="Protection",
    panels=[
        Panel(
            title="Days to theft, as the policy assumes",
            description="Days until the caps of a model's budgets add up to what a thief needs who compresses the weights "
            "as far as `theft_compression` says. From the policy alone, never from usage.",
            kind="stat",
            unit="d",
            decimals=0,
            width=6,
            base="red",
            thresholds=_DAYS,
            words={NEVER_DAYS: "never"},
            queries=[
                Query(
                    expr=f"clamp_max(min by (model, assumption) (weir_days_to_theft{GATEWAY}) "
                    f"and on (model, assumption) {_OWN}, {NEVER_DAYS:g})",
                    legend="{{model}}",
                )
            ],
        ),
        Panel(
            title="Days to theft by assumption",
            description="The same caps against thieves who compress better or worse. `never`: a lifetime budget stays below "
            "what such a thief needs.",
            kind="bargauge",
            unit="d",
            decimals=0,
            width=10,
            base="red",
            thresholds=_DAYS,
            maximum=3650,
            words={NEVER_DAYS: "never"},
            queries=[
                Query(
                    expr=f"clamp_max(min by (model, assumption) (weir_days_to_theft{GATEWAY}), {NEVER_DAYS:g})",
                    legend="{{model}}: {{assumption}}",
                )
            ],
        ),
        Panel(
            title="Left within a day, of what a thief needs",
            description="Bits charged in the last 24 hours, less refunds, as a share of what a thief needs under the "
            "policy's own assumption. It says what was used, and bounds nothing: the budgets do.",
            unit="percentunit",
            width=8,
            queries=[
                Query(
                    expr=f"(sum by (model) (increase(weir_charged_bits_total{MODEL}[1d]))"
                    f" - sum by (model) (increase(weir_refunded_bits_total{MODEL}[1d])))"
                    f" / on (model) max by (model) (weir_theft_bits{MODEL} and on (model, assumption) {_OWN})",
                    legend="{{model}}",
                )
            ],
        ),
    ],
)

BUDGETS = Row(
    title="Budgets",
    panels=[
        Panel(
            title="Used of each budget",
            description="What left, or may have left before a crash, as a share of the limit in the present window. Gateways "
            "that share a ledger show the same budget; the highest counts.",
            kind="bargauge",
            unit="percentunit",
            maximum=1,
            thresholds=(Threshold(value=0.7, color="orange"), Threshold(value=0.9, color="red")),
            queries=[
                Query(
                    expr=f"max by {ACCOUNT} (weir_budget_used_bits{BUDGET})"
                    f" / max by {ACCOUNT} (weir_budget_limit_bits{BUDGET} > 0)",
                    legend="{{owner}} {{name}} {{model}} {{window}}",
                )
            ],
        ),
        Panel(
            title="Burn rate",
            description="How many times faster than its window allows a budget was used over the last hour: at 1 it lasts "
            "exactly as long as its window, at 14.4 a thirtieth of thirty days' worth is gone in an hour and forty minutes. "
            "Lifetime budgets have no rate.",
            unit="none",
            thresholds=(
                Threshold(value=1, color="yellow"),
                Threshold(value=6, color="orange"),
                Threshold(value=14.4, color="red"),
            ),
            queries=[
                Query(
                    expr='weir:budget_burn:ratio1h{model=~"$model|"}', legend="{{owner}} {{name}} {{model}} {{window}}"
                )
            ],
        ),
        Panel(
            title="Used of each budget over time",
            description="The same share over time. It falls where a window ends, and a little where settlement refunds.",
            unit="percentunit",
            width=24,
            queries=[
                Query(
                    expr=f"max by {ACCOUNT} (weir_budget_used_bits{BUDGET})"
                    f" / max by {ACCOUNT} (weir_budget_limit_bits{BUDGET} > 0)",
                    legend="{{owner}} {{name}} {{model}} {{window}}",
                )
            ],
        ),
    ],
)

CHARGES = Row(
    title="Charges",
    panels=[
        Panel(
            title="Charged against raw",
            description="Text as it left at 8 bits a byte, what was charged at release (text, ends, ticks), and what "
            "remains of it after refunds.",
            unit="bps",
            width=8,
            queries=[
                Query(
                    expr=f"sum(rate(weir_released_bits_total{MODEL}[$__rate_interval]))", legend="text at 8 bits a byte"
                ),
                Query(expr=f"sum(rate(weir_charged_bits_total{MODEL}[$__rate_interval]))", legend="charged at release"),
                Query(expr=f"sum({NET_BITS})", legend="charged after settlement"),
            ],
        ),
        Panel(
            title="Refunded by code",
            description="What settlement gave back, by the code that was the cheapest at each step.",
            unit="bps",
            width=8,
            stacked=True,
            queries=[
                Query(
                    expr=f"sum by (code) (rate(weir_refunded_bits_total{MODEL}[$__rate_interval]))", legend="{{code}}"
                )
            ],
        ),
        Panel(
            title="Bits a byte",
            description="What a byte of text costs in the end. About 2.5 to 2.8 for honest chat under zstd; 8 and more is "
            "text that does not compress: encrypted, encoded, or not language.",
            unit="none",
            decimals=2,
            width=8,
            thresholds=(Threshold(value=6, color="red"),),
            queries=[
                Query(
                    expr=f"sum by (model) ({NET_BITS})"
                    f" / sum by (model) (rate(weir_released_text_bytes_total{MODEL}[$__rate_interval]) > 0)",
                    legend="{{model}}",
                )
            ],
        ),
        Panel(
            title="Cost of answers by code",
            description="What answers cost after each step of their settlement, by the code that the step chose. An answer "
            "that two steps settled is in it twice.",
            unit="bps",
            stacked=True,
            queries=[
                Query(expr=f"sum by (code) (rate(weir_settled_bits_total{MODEL}[$__rate_interval]))", legend="{{code}}")
            ],
        ),
        Panel(
            title="On the wire",
            description="Body bytes from backends, and to clients. The difference is envelope that never passes.",
            unit="Bps",
            queries=[
                Query(
                    expr=f"sum(rate(weir_received_wire_bytes_total{GATEWAY}[$__rate_interval]))", legend="from backends"
                ),
                Query(expr=f"sum(rate(weir_sent_wire_bytes_total{GATEWAY}[$__rate_interval]))", legend="to clients"),
            ],
        ),
    ],
)

TRAFFIC = Row(
    title="Traffic and refusals",
    panels=[
        Panel(
            title="Refusals by reason",
            description="Requests refused; docs/api.md lists the reasons. `over_budget` means that a budget is spent, "
            "`ledger_unavailable`, `unlicensed` and `unwitnessed` that nothing leaves.",
            unit="reqps",
            stacked=True,
            queries=[
                Query(
                    expr=f"sum by (reason) (rate(weir_refusals_total{GATEWAY}[$__rate_interval])) > 0",
                    legend="{{reason}}",
                )
            ],
        ),
        Panel(
            title="Answers by outcome",
            description="How admitted requests ended. `budget`, `licence` and `unwitnessed` were cut.",
            unit="reqps",
            stacked=True,
            queries=[
                Query(
                    expr=f"sum by (outcome) (rate(weir_requests_total{MODEL}[$__rate_interval])) > 0",
                    legend="{{outcome}}",
                )
            ],
        ),
        Panel(
            title="Time to the first release",
            description="From admission to the first bytes that left, half and 99 of 100 answers.",
            unit="s",
            width=8,
            queries=[
                Query(
                    expr=f"histogram_quantile({share}, sum by (model, le) "
                    f"(rate(weir_first_release_seconds_bucket{MODEL}[$__rate_interval])))",
                    legend=f"{{{{model}}}} p{name}",
                )
                for share, name in ((0.5, "50"), (0.99, "99"))
            ],
        ),
        Panel(
            title="Answers open",
            description="Admitted and not ended.",
            unit="short",
            width=8,
            queries=[Query(expr=f"sum by (model) (weir_answers_in_flight{MODEL})", legend="{{model}}")],
        ),
        Panel(
            title="Backend errors by kind",
            description="What went wrong with inference servers. `protocol` and `malformed` are answers that are no answers.",
            unit="cps",
            width=8,
            stacked=True,
            queries=[
                Query(
                    expr=f"sum by (model, kind) (rate(weir_backend_errors_total{MODEL}[$__rate_interval]))",
                    legend="{{model}} {{kind}}",
                )
            ],
        ),
    ],
)

BOARD = Board(
    name="overview",
    title="Weir: overview",
    description="How long a theft would take, how much of each budget is gone, what was charged by which code, who was refused.",
    variables=[GATEWAYS, MODELS],
    rows=[PROTECTION, BUDGETS, CHARGES, TRAFFIC],
)
