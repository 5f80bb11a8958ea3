"""One tenant: its budgets, how fast they go, what its answers cost and how they ended."""

from deploy.grafana.boards.queries import GATEWAYS, TENANT
from deploy.grafana.dashboard import Board, Panel, Query, Row, Threshold

_OWN = '{instance=~"$gateway", tenant="$tenant"}'
_BUDGET = '{instance=~"$gateway", owner="tenant", name="$tenant"}'
_NET = (
    f"sum by (model) (rate(weir_charged_bits_total{_OWN}[$__rate_interval]))"
    f" - sum by (model) (rate(weir_refunded_bits_total{_OWN}[$__rate_interval]))"
)
_LEFT = (
    f"max by (model, window) (weir_budget_limit_bits{_BUDGET})"
    f" - max by (model, window) (weir_budget_used_bits{_BUDGET})"
    f" - sum by (model, window) (weir_budget_reserved_bits{_BUDGET})"
)

BUDGETS = Row(
    title="Budgets of $tenant",
    panels=[
        Panel(
            title="Used",
            description="What left in the present window, or may have left before a crash, as a share of the tenant's limit. "
            "A share of a model's budget has that model's name; a budget over all models has none.",
            kind="bargauge",
            unit="percentunit",
            maximum=1,
            width=8,
            thresholds=(Threshold(value=0.7, color="orange"), Threshold(value=0.9, color="red")),
            queries=[
                Query(
                    expr=f"max by (model, window) (weir_budget_used_bits{_BUDGET})"
                    f" / max by (model, window) (weir_budget_limit_bits{_BUDGET} > 0)",
                    legend="{{model}} {{window}}",
                )
            ],
        ),
        Panel(
            title="Left",
            description="Bits that may still leave in the present window: the limit, less what is used or held for open answers.",
            kind="stat",
            unit="decbits",
            width=8,
            minimum=None,
            base="red",
            thresholds=(Threshold(value=1, color="green"),),
            queries=[Query(expr=_LEFT, legend="{{model}} {{window}}")],
        ),
        Panel(
            title="Burn rate",
            description="How many times faster than its window allows a budget was used over the last hour. 1 lasts exactly "
            "as long as the window.",
            unit="none",
            width=8,
            thresholds=(
                Threshold(value=1, color="yellow"),
                Threshold(value=6, color="orange"),
                Threshold(value=14.4, color="red"),
            ),
            queries=[
                Query(expr='weir:budget_burn:ratio1h{owner="tenant", name="$tenant"}', legend="{{model}} {{window}}")
            ],
        ),
        Panel(
            title="Used over time",
            description="The share used of each budget. It falls where a window ends, and a little where settlement refunds.",
            unit="percentunit",
            width=24,
            queries=[
                Query(
                    expr=f"max by (model, window) (weir_budget_used_bits{_BUDGET})"
                    f" / max by (model, window) (weir_budget_limit_bits{_BUDGET} > 0)",
                    legend="{{model}} {{window}}",
                )
            ],
        ),
    ],
)

TRAFFIC = Row(
    title="Traffic of $tenant",
    panels=[
        Panel(
            title="Text",
            description="Text that left, in UTF-8 bytes.",
            unit="Bps",
            queries=[
                Query(
                    expr=f"sum by (model) (rate(weir_released_text_bytes_total{_OWN}[$__rate_interval]))",
                    legend="{{model}}",
                )
            ],
        ),
        Panel(
            title="Charged after settlement",
            description="What counts against budgets: charged at release, less what settlement gave back.",
            unit="bps",
            queries=[Query(expr=_NET, legend="{{model}}")],
        ),
        Panel(
            title="Bits a byte",
            description="What a byte of this tenant's text costs in the end. Far above the other tenants of a model: its "
            "answers do not compress.",
            unit="none",
            decimals=2,
            width=8,
            thresholds=(Threshold(value=6, color="red"),),
            queries=[
                Query(
                    expr=f"({_NET}) / sum by (model) (rate(weir_released_text_bytes_total{_OWN}[$__rate_interval]) > 0)",
                    legend="{{model}}",
                ),
            ],
        ),
        Panel(
            title="Answers by outcome",
            description="How the tenant's admitted requests ended. Refusals have no tenant: many have shown no key.",
            unit="reqps",
            width=8,
            stacked=True,
            queries=[
                Query(
                    expr=f"sum by (outcome) (rate(weir_requests_total{_OWN}[$__rate_interval])) > 0",
                    legend="{{outcome}}",
                )
            ],
        ),
        Panel(
            title="Share of the models' charges",
            description="Of all that a model's answers are charged, after settlement, the tenant's part.",
            unit="percentunit",
            maximum=1,
            width=8,
            queries=[
                Query(
                    expr='sum by (model) (weir:spent_bits:rate1h{tenant="$tenant"})'
                    " / sum by (model) (weir:spent_bits:rate1h > 0)",
                    legend="{{model}}",
                )
            ],
        ),
    ],
)

BOARD = Board(
    name="tenant",
    title="Weir: tenant",
    description="One tenant: its budgets, how fast they go, what its answers cost and how they ended.",
    variables=[GATEWAYS, TENANT],
    rows=[BUDGETS, TRAFFIC],
)
