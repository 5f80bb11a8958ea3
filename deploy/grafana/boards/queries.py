"""What queries of several boards have in common."""

from deploy.grafana.dashboard import Variable

GATEWAYS = Variable(name="gateway", label="Gateway", query="label_values(weir_build_info, instance)")
MODELS = Variable(name="model", label="Model", query="label_values(weir_days_to_theft, model)")
TENANT = Variable(
    name="tenant", label="Tenant", query='label_values(weir_budget_limit_bits{owner="tenant"}, name)', several=False
)

GATEWAY = '{instance=~"$gateway"}'
MODEL = '{instance=~"$gateway", model=~"$model"}'
BUDGET = '{instance=~"$gateway", model=~"$model|"}'  # budgets over all models of a tenant have no model
ACCOUNT = "(owner, name, model, window)"
NET_BITS = (
    f"sum by (model) (rate(weir_charged_bits_total{MODEL}[$__rate_interval]))"
    f" - sum by (model) (rate(weir_refunded_bits_total{MODEL}[$__rate_interval]))"
)
