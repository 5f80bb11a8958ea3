"""What operations.md tells an operator to run says what it says it does."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

from gateway.audit.segments import SegmentLog
from gateway.record import Entry, LeaseGranted

ROOT = Path(__file__).resolve().parents[2]


async def record(directory: Path) -> None:
    """Three grants."""
    log = SegmentLog(directory)
    grants = [
        LeaseGranted(at_ms=1, lease=f"l{n}", holder="h", bits={"a": 10, "s/1": 5}, fences={"a": n, "s": n})
        for n in (1, 2, 3)
    ]
    await log.append([Entry(leaf) for leaf in grants])
    await log.close()


def test_what_a_ledger_has_forgotten_is_what_the_log_has_and_an_export_has_not(tmp_path: Path) -> None:
    # Arrange: of three grants the ledger has one, and one that was granted anew with nothing.
    asyncio.run(record(tmp_path / "audit"))
    (tmp_path / "ledger.jsonl").write_text(
        '{"type":"account","account":"a"}\n'
        '{"type":"lease","lease":"l1","bits":{"a":10,"s/1":5}}\n'
        '{"type":"lease","lease":"l2","bits":{"a":0,"s/1":0}}\n'
    )
    found = re.search(r"```python\n(import json.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
    assert found is not None

    # Act
    lost = [
        subprocess.run(
            [sys.executable, "-c", found[1], tmp_path / "audit", account, tmp_path / "ledger.jsonl"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        ).stdout
        for account in ("a", "s")
    ]

    # Assert
    assert lost == ["20\n", "10\n"]
