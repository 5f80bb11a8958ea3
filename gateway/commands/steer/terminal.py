"""Where output goes: results on stdout, as a table or as JSON; progress, notes and errors on stderr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from rich.console import Console, RenderableType

from gateway.commands.steer.server import Server


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """What a command works with."""

    server: Server
    out: Console
    notes: Console
    as_json: bool

    def show(self, document: Any, *parts: RenderableType) -> None:
        """Print a result: the document if JSON is asked for, otherwise the parts."""
        if self.as_json:
            self.out.out(json_text(document), highlight=False)
            return
        for part in parts:
            self.out.print(part)

    def note(self, text: str) -> None:
        """Say something beside the result."""
        self.notes.print(text, markup=False, soft_wrap=True)


def json_text(document: Any) -> str:
    """JSON for people's eyes and for files."""
    return msgspec.json.format(msgspec.json.encode(document)).decode()
