"""The committed dashboards are what the generator writes; every panel says what it shows, in which unit, of metrics that exist."""

import json
import re
from pathlib import Path

import pytest
import yaml

from deploy.grafana.dashboard import GRID_COLUMNS, Panel, Query
from deploy.grafana.generate import BOARDS, DASHBOARDS, text
from gateway.metrics import Metrics
from tests.deploy.metrics import exposed, named

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = sorted(DASHBOARDS.glob("*.json"))
DOCUMENTS = {path.stem: json.loads(path.read_text()) for path in FILES}
RECORDED = {
    rule["record"]
    for group in yaml.safe_load((DEPLOY / "prometheus/recording.yaml").read_text())["groups"]
    for rule in group["rules"]
}


def panels(document):
    return [panel for panel in document["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_what_is_committed_is_what_the_generator_writes(board):
    assert (DASHBOARDS / f"{board.name}.json").read_text() == text(board), "run `make dashboards`"


def test_there_is_no_file_without_a_board_and_links_to_the_boards_stay_what_they_are():
    assert {name: document["uid"] for name, document in DOCUMENTS.items()} == {
        "overview": "weir-overview",
        "tenant": "weir-tenant",
        "gateway": "weir-gateway",
        "inference": "weir-inference",
    }


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_panel_has_an_id_of_its_own_a_title_a_description_and_a_unit(name):
    document = DOCUMENTS[name]
    ids = [panel["id"] for panel in document["panels"]]
    assert ids == list(range(1, len(ids) + 1))
    assert panels(document)
    for panel in panels(document):
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_panels_fit_the_grid_and_none_lies_on_another(name):
    taken = set()
    for panel in DOCUMENTS[name]["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= GRID_COLUMNS
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells


@pytest.mark.parametrize("name", DOCUMENTS)
def test_queries_speak_of_metrics_that_exist_and_of_variables_that_the_board_has(name):
    document = DOCUMENTS[name]
    variables = {variable["name"] for variable in document["templating"]["list"]} | {"__rate_interval", "datasource"}
    queries = [target["expr"] for panel in panels(document) for target in panel["targets"]]
    queries += [v["query"]["query"] for v in document["templating"]["list"] if v["type"] == "query"]
    for query in queries:
        assert named(query)
        assert named(query) <= exposed() | RECORDED
        assert set(re.findall(r"\$\{?(\w+)", query)) <= variables


def test_a_board_for_every_part_of_the_gateways_metrics():
    """What is on no board is not watched; the list is of what a curve would say nothing about."""
    shown = {metric for d in DOCUMENTS.values() for p in panels(d) for t in p["targets"] for metric in named(t["expr"])}
    shown |= {
        metric
        for group in yaml.safe_load((DEPLOY / "prometheus/recording.yaml").read_text())["groups"]
        for rule in group["rules"]
        for metric in named(rule["expr"])
    }
    families = {f.name: {name for name in exposed() if name.startswith(f.name)} for f in Metrics().registry.collect()}
    unshown = {name for name, samples in families.items() if not samples & shown}
    assert unshown == {
        "weir_request_duration_seconds",  # as long as clients ask for
        "weir_config_reloads",  # whether the last one was taken is shown
        "weir_config_last_reload_success_timestamp_seconds",
        "weir_audit_witness_errors",  # who of several is away is for an alert's reader
    }


def test_a_panel_without_a_description_cannot_be_made():
    query = Query(expr="up", legend="")
    with pytest.raises(ValueError, match="description"):
        Panel(title="Up", description="", unit="none", queries=[query])
    with pytest.raises(ValueError, match="a query"):
        Panel(title="Up", description="Whether it is up.", unit="none", queries=[])


def test_grafana_is_provisioned_with_the_boards_and_with_the_scrape_interval_of_prometheus():
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    scraping = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["global"]["scrape_interval"]
    assert [(s["type"], s["isDefault"], s["jsonData"]["timeInterval"]) for s in sources] == [
        ("prometheus", True, scraping)
    ]
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/weir.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    assert not provider["allowUiUpdates"], "the boards are code"
