"""What an auditor is told: findings, of which a log that is in order has none, and remarks, which are no fault."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FINDINGS_MAX = 1000  # more of them say nothing more; a log of another key would have one a record


@dataclass(frozen=True, slots=True)
class Finding:
    """Something is wrong: where, and what."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Findings:
    """Collects them, in the order in which they were found."""

    def __init__(self) -> None:
        self.all: list[Finding] = []
        self.remarks: list[str] = []
        self.more = 0  # beyond `FINDINGS_MAX`

    def found(self, where: Path | str, what: str) -> None:
        """This is wrong."""
        if len(self.all) < FINDINGS_MAX:
            self.all.append(Finding(str(where), what))
        else:
            self.more += 1

    def remark(self, what: str) -> None:
        """Worth knowing."""
        self.remarks.append(what)
