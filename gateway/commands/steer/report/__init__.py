"""A measurement as a page: one file of HTML with plots, without scripts and without anything from elsewhere. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.commands.steer.report.evaluation import evaluation_page
from gateway.commands.steer.report.layers import sweep_page


def render(document: Mapping[str, Any]) -> str:
    """The page of a measurement (`gateway.commands.steer.measurement`)."""
    return {"evaluate": evaluation_page, "sweep": sweep_page}[document["kind"]](document)
