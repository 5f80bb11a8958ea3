"""A gateway with limits of a test's own: this file is the program that sets them before anything has read them."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path


def program(**limits: float) -> list[str]:
    """Arguments for Python that stand for `-m gateway`. The names are those of `policy.limits`."""
    return ["-P", str(Path(__file__).resolve()), json.dumps(limits)]


if __name__ == "__main__":
    from policy import limits as of_policy

    for name, value in json.loads(sys.argv.pop(1)).items():
        assert hasattr(of_policy, name), f"there is no limit {name}"
        setattr(of_policy, name, value)
    runpy.run_module("gateway", run_name="__main__", alter_sys=True)
