"""The alerting rules speak of metrics that exist, and the operator's guide speaks of every alert."""

import re
from pathlib import Path

import pytest
import yaml

from gateway.metrics import Metrics

REPOSITORY = Path(__file__).parents[2]
RULES = [
    rule
    for group in yaml.safe_load((REPOSITORY / "deploy/prometheus/alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
NAMES = {sample for family in Metrics().registry.collect() for sample in (family.name, f"{family.name}_total")}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_is_about_metrics_that_exist_says_what_is_wrong_and_is_in_the_guide(rule):
    metrics = set(re.findall(r"weir_[a-z_]+", rule["expr"]))
    assert metrics
    assert metrics <= NAMES
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["alert"] in (REPOSITORY / "docs/operations.md").read_text()
