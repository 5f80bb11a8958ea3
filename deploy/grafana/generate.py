"""Writes `dashboards/*.json` from `boards/`: `make dashboards`. A test holds the two together."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.grafana.boards import gateway, inference, overview, tenant
from deploy.grafana.dashboard import Board, document

DASHBOARDS = Path(__file__).parent / "dashboards"
BOARDS = (overview.BOARD, tenant.BOARD, gateway.BOARD, inference.BOARD)


def text(board: Board) -> str:
    """The file of a board."""
    return json.dumps(document(board), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DASHBOARDS.mkdir(exist_ok=True)
    for board in BOARDS:
        (DASHBOARDS / f"{board.name}.json").write_text(text(board))
