"""Every alert is about metrics that exist, has been seen to fire and not to fire, and has its section in the runbook."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.metrics import exposed, named
from tests.prometheus import program

REPOSITORY = Path(__file__).parents[2]
PROMETHEUS = REPOSITORY / "deploy/prometheus"
RUNBOOK = (REPOSITORY / "docs/runbook.md").read_text()
QUESTIONS = ("What it means.", "How bad.", "First look.", "What to do.", "When to wake somebody.")
SPANS = ("5m", "30m", "1h", "6h", "3d")


def rules_of(name):
    return [rule for group in yaml.safe_load((PROMETHEUS / name).read_text())["groups"] for rule in group["rules"]]


ALERTS = rules_of("alerts.yaml")
RECORDED = rules_of("recording.yaml")
CASES = [
    case
    for path in sorted((PROMETHEUS / "tests").glob("*.yaml"))
    for test in yaml.safe_load(path.read_text())["tests"]
    for case in test["alert_rule_test"]
]


@pytest.mark.parametrize("rule", [*ALERTS, *RECORDED], ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_is_about_metrics_that_exist(rule):
    asked = named(rule["expr"])
    assert asked or "up" in rule["expr"] or rule["expr"].startswith("vector")
    assert asked <= exposed() | {recorded["record"] for recorded in RECORDED}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_how_urgent_it_is_and_where_to_read_on(rule):
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_the_runbook_answers_five_questions_about_an_alert(rule):
    section = re.search(rf"^### {rule['alert']}\n(.+?)(?=^##|\Z)", RUNBOOK, flags=re.MULTILINE | re.DOTALL)
    assert section is not None
    assert re.findall(r"^\*\*(.+?)\*\*", section[1], flags=re.MULTILINE) == list(QUESTIONS)
    answers = re.split(r"^\*\*.+?\*\*", section[1], flags=re.MULTILINE)[1:]
    assert all(len(answer.strip()) > 5 for answer in answers)


def test_the_runbook_has_no_section_without_an_alert_and_its_links_lead_somewhere():
    headings = re.findall(r"^### (\w+)$", RUNBOOK, flags=re.MULTILINE)
    assert headings == list(dict.fromkeys(headings))
    assert set(headings) == {rule["alert"] for rule in ALERTS}
    operations = (REPOSITORY / "docs/operations.md").read_text()
    places = {
        "": {heading.lower() for heading in headings},
        "operations.md": {
            re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
            for heading in re.findall(r"^#+ (.+)$", operations, flags=re.MULTILINE)
        },
    }
    for document, anchor in re.findall(r"\]\(([\w.]*)#([\w-]+)\)", RUNBOOK):
        assert anchor in places[document], f"{document}#{anchor}"


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(rule):
    fires = {bool(case["exp_alerts"]) for case in CASES if case["alertname"] == rule["alert"]}
    assert fires == {True, False}


def test_the_cases_hold():
    """By promtool's judgement. A rule that is changed so that a case does not hold is noticed."""
    done = promtool("test", "rules", *sorted((PROMETHEUS / "tests").glob("*.yaml")))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_case_that_does_not_hold_is_noticed(tmp_path):
    shutil.copytree(PROMETHEUS, tmp_path, dirs_exist_ok=True)
    alerts = tmp_path / "alerts.yaml"
    alerts.write_text(alerts.read_text().replace("weir_ledger_frozen_accounts > 0", "weir_ledger_frozen_accounts > 2"))
    done = promtool("test", "rules", tmp_path / "tests/ledger.yaml")
    assert done.returncode == 1
    assert "WeirLedgerFrozen" in done.stdout + done.stderr


def test_the_five_spans_of_the_burn_are_computed_alike():
    for record in ("weir:spent_bits:rate", "weir:account_spent_bits:rate", "weir:budget_burn:ratio"):
        found = {rule["record"]: rule["expr"] for rule in RECORDED if rule["record"].startswith(record)}
        assert set(found) == {f"{record}{span}" for span in SPANS}
        alike = {
            expr.replace(f"[{span}]", "[SPAN]").replace(f"rate{span}", "rateSPAN")
            for span in SPANS
            for expr in [found[f"{record}{span}"]]
        }
        assert len(alike) == 1


def promtool(*arguments):
    command = [program("promtool"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=150)
