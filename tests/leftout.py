"""Tests that need what a machine may lack: they are left out aloud, in the last lines of the run, never in silence."""

from __future__ import annotations

import pytest

_left_out: list[str] = []


def leave_out(condition: bool, what: str) -> pytest.MarkDecorator:
    """A module's mark. `what` names, for the reader of a test run's end, what was not tested and how to have it."""
    if condition:
        _left_out.append(what)
    return pytest.mark.skipif(condition, reason=f"left out: {what}")


def summary() -> list[str]:
    """What was left out of this run, a line each."""
    return [f"LEFT OUT: {what}" for what in _left_out]
