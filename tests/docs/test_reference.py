"""The reference documents name everything that exists, and nothing that does not."""

import re
from pathlib import Path

import pytest

from docs.generate import DOCUMENTS, TABLE, generated
from gateway.wire.rejections import JOB_FAULTS, REJECTIONS
from policy.document import json_schema
from policy.refusal import Reason
from policy.release import Outcome

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_the_tables_of_fields_and_metrics_are_those_of_the_code(document: Path) -> None:
    assert document.read_text() == generated(document.read_text()), "run: make reference"


def test_every_part_of_a_policy_and_every_registry_has_its_table() -> None:
    tables = [match["what"].split() for document in DOCUMENTS for match in TABLE.finditer(document.read_text())]
    assert {subject for subject, *_ in tables} == {"PolicyForm", *json_schema()["$defs"], "metrics"}
    assert [argument for subject, *argument in tables if subject == "metrics"] == [["gateway"], ["inference"]]


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.label)
def test_the_api_reference_lists_every_refusal_with_its_status_and_code(reason: Reason) -> None:
    row = f"| `{reason.label}` | {reason.value.status} | `{reason.value.code}`"
    assert row in (DOCS / "api.md").read_text()


@pytest.mark.parametrize("code", [code for code, _ in (*REJECTIONS, *JOB_FAULTS)])
def test_the_api_reference_lists_every_code_that_a_backend_may_name(code: str) -> None:
    assert f"`{code}`" in (DOCS / "api.md").read_text()


@pytest.mark.parametrize("outcome", Outcome, ids=lambda outcome: outcome.value)
def test_the_metrics_reference_lists_every_outcome(outcome: Outcome) -> None:
    assert f"`{outcome.value}`" in (DOCS / "metrics.md").read_text()


def test_every_document_that_is_linked_exists() -> None:
    root = DOCS.parent
    for document in [root / "README.md", *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
