"""The reference documents name everything that exists, and nothing that does not."""

import re
from pathlib import Path

import pytest

from gateway.wire.rejections import JOB_FAULTS, REJECTIONS
from policy.refusal import Reason
from policy.release import Outcome
from tests.deploy.metrics import families

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_metrics_reference_lists_exactly_the_metrics_that_exist() -> None:
    # Arrange: what the gateway's registry and the inference server's expose, by the names that Prometheus shows.
    exposed = {family.name + {"counter": "_total", "info": "_info"}.get(family.type, "") for family in families()}

    # Act
    listed = set(re.findall(r"^\| `(weir_[a-z_]+)` \|", (DOCS / "metrics.md").read_text(), flags=re.MULTILINE))

    # Assert
    assert listed == exposed


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
